// Every decoder of bytes that come from outside. What the readers of protobuf and HTTP make of bytes is tested over the
// wire (test/e2e/hardening.test.ts).
import type { Target } from './target.ts';
import { ANSWER_TARGETS } from './targets/answers.ts';
import { CALLER_TARGETS } from './targets/callers.ts';
import { ENDPOINT_TARGETS } from './targets/endpoints.ts';
import { FILTER_TARGETS } from './targets/filters.ts';
import { MESSAGE_TARGETS } from './targets/messages.ts';
import { SETTING_TARGETS } from './targets/settings.ts';
import { TEXT_TARGETS } from './targets/text.ts';

export const TARGETS: readonly Target[] = [
  ...TEXT_TARGETS,
  ...CALLER_TARGETS,
  ...ENDPOINT_TARGETS,
  ...ANSWER_TARGETS,
  ...MESSAGE_TARGETS,
  ...FILTER_TARGETS,
  ...SETTING_TARGETS,
];
