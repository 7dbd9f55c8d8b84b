// Secrets at rest: AES-256-GCM under a key derived for each tenant, bound to the row it lies in.
import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject } from 'node:crypto';

/** Master keys by id; the first is the one that seals. */
export type MasterKeys = readonly { readonly id: string; readonly key: Buffer }[];

/** What a sealed value is bound to: a copy in another row or tenant does not open. */
export type SealContext = { readonly tenantId: string; readonly resourceId: string; readonly column: string };

/** A sealed value: which master key, and nonce (12 bytes) + ciphertext + tag (16 bytes). */
export type Sealed = { readonly masterKeyId: string; readonly bytes: Buffer };

/** Seals under the first master key. `nonce` is 12 random bytes that are never used again. */
export function seal(keys: MasterKeys, context: SealContext, plain: Uint8Array, nonce: Uint8Array): Sealed {
  const master = keys[0];
  if (master === undefined) throw new Error('there is no master key to seal with');
  const cipher = createCipheriv('aes-256-gcm', tenantKey(master.key, context.tenantId), nonce);
  cipher.setAAD(associatedData(context, master.id));
  const body = Buffer.concat([cipher.update(plain), cipher.final()]);
  return { masterKeyId: master.id, bytes: Buffer.concat([nonce, body, cipher.getAuthTag()]) };
}

/** Opens a sealed value. Throws if its master key is absent, or if it was changed or moved. */
export type Unseal = (context: SealContext, sealed: Sealed) => Buffer;

/** Opens one sealed value, as an Unseal does. */
export function unseal(keys: MasterKeys, context: SealContext, sealed: Sealed): Buffer {
  return unsealerOf(keys)(context, sealed);
}

/**
 * For many values: remembers the keys of the tenants that it meets, whose derivation takes 20 of the 24 µs that opening one
 * takes. It is kept for no longer than the many values are read.
 */
export function unsealerOf(keys: MasterKeys): Unseal {
  const derived = new Map<string, KeyObject>();
  return (context, { masterKeyId, bytes }) => {
    const master = keys.find((k) => k.id === masterKeyId);
    if (master === undefined) throw new Error(`master key "${masterKeyId}" is not in DISPATCH_MASTER_KEYS`);
    const name = `${context.tenantId}|${masterKeyId}`;
    let key = derived.get(name);
    if (key === undefined) {
      key = tenantKey(master.key, context.tenantId);
      derived.set(name, key);
    }
    const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12), { authTagLength: 16 });
    decipher.setAAD(associatedData(context, master.id));
    decipher.setAuthTag(bytes.subarray(bytes.length - 16));
    return Buffer.concat([decipher.update(bytes.subarray(12, bytes.length - 16)), decipher.final()]);
  };
}

/** A key object: opening with the bare bytes of a key takes five times as long in Node 24 (18 µs instead of 3.5). */
function tenantKey(master: Buffer, tenantId: string): KeyObject {
  return createSecretKey(Buffer.from(hkdfSync('sha256', master, '', `dispatch/secret/${tenantId}`, 32)));
}

function associatedData(context: SealContext, keyId: string): Buffer {
  return Buffer.from([context.tenantId, context.resourceId, context.column, keyId].join('|'), 'utf8');
}
