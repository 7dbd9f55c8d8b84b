// Which field of a request in JSON cannot be read. The reader of @bufbuild/protobuf names the field of a scalar; of an enum, a
// time, a duration or an object it names the type, and the way to none of them.
import { type DescField, type DescMessage, fromJson, type JsonValue } from '@bufbuild/protobuf';

/**
 * The path of what cannot be read, as violations have it: "events[2].deliver_after", "event.metadata[a]"; an unknown key as
 * it is written. Empty if no single field is to blame. Reads each part of what is wrong once more: for requests that were
 * refused.
 */
export function unreadableField(schema: DescMessage, json: JsonValue): string {
  if (!isObject(json) || isWellKnown(schema)) return '';
  for (const [key, value] of Object.entries(json)) {
    if (isReadable(schema, key, value)) continue;
    const field = schema.fields.find((f) => f.jsonName === key || f.name === key);
    return field === undefined ? key : `${field.name}${within(schema, field, key, value)}`;
  }
  return '';
}

/** The rest of the path, in a field that cannot be read. */
function within(schema: DescMessage, field: DescField, key: string, value: JsonValue): string {
  if (field.fieldKind === 'message') return below(field.message, value);
  if (field.fieldKind === 'list' && Array.isArray(value)) {
    const i = value.findIndex((item) => !isReadable(schema, key, [item]));
    if (i >= 0) return `[${i}]${field.message === undefined ? '' : below(field.message, value[i]!)}`;
  }
  if (field.fieldKind === 'map' && isObject(value)) {
    for (const [name, item] of Object.entries(value)) {
      if (!isReadable(schema, key, { [name]: item }))
        return `[${name}]${field.message === undefined ? '' : below(field.message, item)}`;
    }
  }
  return '';
}

function below(schema: DescMessage, value: JsonValue): string {
  const path = unreadableField(schema, value);
  return path === '' ? '' : `.${path}`;
}

function isReadable(schema: DescMessage, key: string, value: JsonValue): boolean {
  try {
    fromJson(schema, { [key]: value });
    return true;
  } catch {
    return false;
  }
}

const isObject = (json: JsonValue): json is { [key: string]: JsonValue } =>
  typeof json === 'object' && json !== null && !Array.isArray(json);

/** Its JSON is not that of its fields. */
const isWellKnown = ({ typeName }: DescMessage) => typeName.startsWith('google.protobuf.');
