// One publish that a fault interrupts, and what its client does then: it tries again with the same idempotency key. What
// the answers must be is known from the point at which the fault struck.
import { Code, ConnectError } from '@connectrpc/connect';
import { idBytes } from '../../src/domain/ids.ts';
import { eventually } from '../support/eventually.ts';
import { hashOf } from '../support/ledger.ts';
import type { Clients } from '../support/rpc-clients.ts';
import type { Link, Proxy as TcpProxy } from './proxy.ts';
import { COMMITTED, type PublishPoint, strikeAt } from './publish-points.ts';
import type { Figure } from './scenario.ts';
import type { World } from './world.ts';

/** What became of all probes of a run. */
export type Findings = {
  struck: number;
  /** Committed in spite of the fault. */
  committed: number;
  /** Answered OK by an API that could not know of a commit, or whose answer was lost. */
  ackedTooSoon: number;
  /** Tried again and called a duplicate although it was none, or the other way round. */
  misjudged: number;
  /** One idempotency key, two event ids. */
  twoIds: number;
  /** The key was accepted with another body. */
  otherBodies: number;
};

export const noFindings = (): Findings => ({
  struck: 0,
  committed: 0,
  ackedTooSoon: 0,
  misjudged: 0,
  twoIds: 0,
  otherBodies: 0,
});

/** `atLeast`: how many faults there should have been. */
export const figuresOf = (findings: Findings, what: string, atLeast: number): Figure[] => [
  { name: what, value: findings.struck, atLeast },
  { name: 'committed all the same', value: findings.committed },
  { name: 'acked too soon', value: findings.ackedTooSoon, atMost: 0 },
  { name: 'misjudged as duplicate or not', value: findings.misjudged, atMost: 0 },
  { name: 'keys with two events', value: findings.twoIds, atMost: 0 },
  { name: 'other bodies accepted', value: findings.otherBodies, atMost: 0 },
];

export type Probe = {
  readonly point: PublishPoint;
  readonly tenantId: string;
  /** Of this run, no other has it. */
  readonly key: string;
  readonly front: TcpProxy;
  readonly back: TcpProxy;
  /** The API that is struck, through `front`. */
  readonly first: Clients;
  /** Where the client tries again. */
  readonly second: Clients;
  readonly strike: (link: Link) => void;
};

/** How long a client waits for an answer: longer than any fault here takes to be noticed. */
const TIMEOUT_MS = 10_000;

/** Publishes once, is struck, tries again, and writes down what it finds. */
export async function probePublish(world: World, probe: Probe, findings: Findings): Promise<void> {
  const { point, key, tenantId } = probe;
  const payload = Buffer.from(`{"probe":"${key}"}`);
  const request = (value: Buffer) => ({
    tenantId,
    event: { type: 'order.created', idempotencyKey: key, body: { case: 'payload' as const, value } },
  });
  const acks: { readonly eventId: string; readonly deliveryCount: number }[] = [];
  let isStruck = false;
  const struck = strikeAt({
    ...probe,
    isWhole: world.random() < 0.5,
    delayMs: world.between(0, 30),
    strike: (link) => {
      isStruck = true;
      world.timeline.fault(point);
      probe.strike(link);
    },
  });
  const first = await probe.first.publish.publish(request(payload), { timeoutMs: TIMEOUT_MS }).catch(failed);
  if (first !== undefined) {
    acks.push(first);
    findings.ackedTooSoon++;
  }
  await eventually(() => {
    if (!isStruck) throw new Error(`the publish ${key} did not come to the point "${point}"`);
  }, 1_000);
  const statement = await struck;
  findings.struck++;
  const retry = await eventually(() =>
    probe.second.publish.publish(request(payload), { timeoutMs: TIMEOUT_MS }),
  );
  // The id that the struck statement would have stored. Not by the time in it: that is the database's as the API knows
  // it, which may be wrong by as much as its clock took to be read.
  const isCommitted = COMMITTED[point] ?? statement!.includes(idBytes(retry.eventId));
  if (retry.duplicate) findings.committed++;
  if (retry.duplicate !== isCommitted) findings.misjudged++;
  const again = await probe.second.publish.publish(request(payload));
  if (!again.duplicate) findings.misjudged++;
  acks.push(retry, again);
  if (new Set(acks.map((ack) => ack.eventId)).size > 1) findings.twoIds++;
  const bodyHash = hashOf(payload);
  for (const { eventId, deliveryCount } of acks) world.ledger.acked.set(eventId, { bodyHash, deliveryCount });
  world.timeline.acked(1);
  const other = await probe.second.publish.publish(request(Buffer.from('{"probe":"other"}'))).catch(codeOf);
  if (other !== Code.AlreadyExists) findings.otherBodies++;
}

const codeOf = (error: unknown): Code => ConnectError.from(error).code;

const failed = () => undefined;
