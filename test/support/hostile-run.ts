// Sends to every hostile receiver from a process of its own, as a worker would, and prints what came of it as JSON:
//   node test/support/hostile-run.ts <deadline in ms> <attempts>
import { readdirSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import type { SendOutcome } from '../../src/domain/delivery.ts';
import { createConnect } from '../../src/egress/connector.ts';
import { createAddressGuard } from '../../src/egress/guard.ts';
import { createResolver } from '../../src/egress/resolver.ts';
import { createSender, MAX_RESPONSE_BYTES } from '../../src/egress/sender.ts';
import { createAuthority } from './certificates.ts';
import { BEHAVIOURS, startHostileReceivers } from './hostile.ts';

/** What came of a run. */
export type HostileReport = {
  /** What should not have been, in words. */
  readonly wrong: readonly string[];
  readonly latestMs: number;
  /** Largest resident size above that of a process that has handled ordinary answers. */
  readonly addedMb: number;
  readonly descriptorsBefore: number;
  readonly descriptorsAfter: number;
};

const [deadline = '1000', attempts = '100'] = process.argv.slice(2);
const deadlineMs = Number(deadline);
const guard = createAddressGuard(['127.0.0.0/8']);
await using sender = createSender(createConnect(guard, createResolver([])), () => performance.now());
using authority = createAuthority();
await using receivers = await startHostileReceivers(authority.issue('localhost', ['127.0.0.1']));

type Outcome = { readonly result: SendOutcome; readonly tookMs: number; readonly calls: number };

function send(origin: string): Promise<Outcome> {
  const startedAt = performance.now();
  let calls = 0;
  return new Promise((done) => {
    const headers = ['content-type', 'application/json'];
    const body = Buffer.from('{"a":1}');
    const request = { origin, path: '/', headers, body, timeoutMs: deadlineMs, tlsId: '', tls: undefined };
    sender.send(request, (result) => {
      calls++;
      const tookMs = performance.now() - startedAt;
      // A second call would come at once, or never.
      if (calls === 1) setTimeout(() => done({ result, tookMs, calls }), 20);
    });
  });
}
const many = (url: string) => Promise.all(Array.from({ length: Number(attempts) }, () => send(url)));
const descriptors = () => readdirSync('/proc/self/fd').length;
const megabytes = () => process.memoryUsage.rss() / 1024 / 1024;

// A process that has worked for a while: it has the size that ordinary answers, long ones too, give it.
for (let i = 0; i < 20; i++) await many(receivers.ordinaryUrl);
await many(receivers.urls[BEHAVIOURS.findIndex((b) => b.tls === true)]!);
const before = { fds: descriptors(), mb: megabytes() };
let most = before.mb;
let latest = 0;
const wrong = new Set<string>();
// One after the other, so that a flood of one does not delay another.
for (const [i, behaviour] of BEHAVIOURS.entries()) {
  for (const { result, tookMs, calls } of await many(receivers.urls[i]!)) {
    latest = Math.max(latest, tookMs);
    if (result.kind === 'stalled') throw new Error('this machine stood still for over a second');
    const got = result.kind === 'failure' ? result.errorClass : 'response';
    if (!behaviour.expected.includes(got)) wrong.add(`${behaviour.name}: ${got}`);
    if (calls !== 1) wrong.add(`${behaviour.name}: settled ${calls} times`);
    if (tookMs > deadlineMs + 1_000) wrong.add(`${behaviour.name}: later than its deadline`);
    const kept = result.kind === 'response' ? result.body.length : 0;
    if (kept > MAX_RESPONSE_BYTES) wrong.add(`${behaviour.name}: kept ${kept} bytes`);
  }
  most = Math.max(most, megabytes());
}
// Connections that were given up are closed within a moment.
for (let i = 0; i < 50 && descriptors() > before.fds; i++) await wait(100);
const report: HostileReport = {
  wrong: [...wrong],
  latestMs: Math.round(latest),
  addedMb: Math.round(most - before.mb),
  descriptorsBefore: before.fds,
  descriptorsAfter: descriptors(),
};
process.stdout.write(`${JSON.stringify(report)}\n`);
