// npm run demo: the main job on one screen. A real dispatch process with its embedded database, a real receiver that
// verifies signatures, events delivered, one endpoint that fails, is retried, dead-lettered and replayed.
import { mkdtemp, readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import { Webhook } from 'standardwebhooks';
import { DeliveryState } from '../gen/dispatch/v1/event_pb.ts';
import { Jitter } from '../gen/dispatch/v1/subscription_service_pb.ts';
import { removeEmbedded } from '../src/storage/embedded.ts';
import { freePort } from '../test/support/free-port.ts';
import { clientsOf } from '../test/support/rpc-clients.ts';
import { startChild } from './support/processes.ts';

const EVENTS = 5_000;
const BATCH = 250;

const isTty = process.stdout.isTTY === true;
const say = (text: string) => process.stdout.write(`${isTty ? '\r\x1b[K' : ''}${text}\n`);
let lastShown = 0;
function show(text: string): void {
  if (isTty) process.stdout.write(`\r\x1b[K${text}`);
  else if (performance.now() - lastShown > 500) {
    lastShown = performance.now();
    process.stdout.write(`${text}\n`);
  }
}
const bar = (done: number, all: number) => {
  const filled = Math.round((done / all) * 30);
  return `${'█'.repeat(filled)}${'░'.repeat(30 - filled)} ${done}/${all}`;
};

/** A receiver that verifies every signature with the official library. */
async function startReceiver() {
  const state = { secret: '', verified: 0, forged: 0, status: 200, seen: new Set<string>() };
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      try {
        new Webhook(state.secret).verify(
          Buffer.concat(chunks).toString(),
          request.headers as Record<string, string>,
        );
        state.verified++;
        state.seen.add(String(request.headers['webhook-id']));
      } catch {
        state.forged++;
      }
      response.writeHead(state.status);
      response.end(state.status === 200 ? 'thanks' : 'out of order today');
    });
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/webhooks`;
  return { state, url, close: () => server.closeAllConnections() };
}

const dataDir = await mkdtemp(join(tmpdir(), 'dispatch-demo-'));
const [httpPort, grpcPort] = [await freePort(), await freePort()];
const startedAt = performance.now();
show('starting dispatch with an embedded PostgreSQL …');
const dispatch = await startChild(
  '../../src/main.ts',
  ['serve'],
  {
    DISPATCH_DATA_DIR: dataDir,
    DISPATCH_HTTP_PORT: String(httpPort),
    DISPATCH_GRPC_PORT: String(grpcPort),
    DISPATCH_ALLOW_ENDPOINT_CIDRS: '127.0.0.0/8',
    DISPATCH_LOG_LEVEL: 'warn',
  },
  /(dispatch is ready)/,
);
try {
  say(`✓ dispatch and PostgreSQL started in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  const admin = clientsOf(httpPort, await readFile(join(dataDir, 'admin-key'), 'utf8'));
  await admin.tenants.createTenant({ tenant: { tenantId: 'acme', displayName: 'Acme' } });
  const { key } = await admin.tenants.createApiKey({ tenantId: 'acme', displayName: 'demo' });
  const acme = clientsOf(httpPort, key);
  say('✓ tenant "acme", with a key of its own');

  const good = await startReceiver();
  const { subscription, secret } = await acme.subscriptions.createSubscription({
    subscription: { url: good.url, eventTypes: ['order.*'] },
  });
  good.state.secret = secret;
  say(`✓ subscription ${subscription?.subscriptionId} for order.* → ${good.url}`);

  const sentAt = performance.now();
  let acked = 0;
  for (let n = 0; n < EVENTS; n += BATCH) {
    const events = Array.from({ length: BATCH }, (_, i) => ({
      type: 'order.created',
      body: { case: 'data' as const, value: { orderId: n + i, amount: 99.9 } },
    }));
    acked += (await acme.publish.publishBatch({ events })).results.filter(
      (r) => r.result.case === 'ok',
    ).length;
    show(`  publishing  ${bar(acked, EVENTS)}   delivered ${good.state.seen.size}`);
  }
  while (good.state.seen.size < EVENTS) {
    show(`  delivering  ${bar(good.state.seen.size, EVENTS)}`);
    await wait(20);
  }
  const seconds = (performance.now() - sentAt) / 1000;
  say(
    `✓ ${acked} events published, committed, delivered and verified in ${seconds.toFixed(1)} s (${good.state.forged} bad signatures)`,
  );

  const bad = await startReceiver();
  bad.state.status = 500;
  const broken = await acme.subscriptions.createSubscription({
    subscription: {
      url: bad.url,
      eventTypes: ['invoice.*'],
      retryPolicy: {
        schedule: { case: 'list', value: { delays: [300, 600, 900].map(durationFromMs) } },
        jitter: Jitter.NONE,
      },
    },
  });
  bad.state.secret = broken.secret;
  const { eventId } = await acme.publish.publish({
    event: { type: 'invoice.paid', body: { case: 'data', value: { invoice: 7 } } },
  });
  const stateNow = async () => (await acme.events.listDeliveries({ eventId })).deliveries[0];
  let delivery = await stateNow();
  while (delivery?.state !== DeliveryState.DEAD_LETTERED) {
    show(
      `  an endpoint that answers 500: attempt ${delivery?.attemptCount} of 4 failed, waiting for the next`,
    );
    await wait(50);
    delivery = await stateNow();
  }
  const { deadLetter } = await acme.deadLetters.getDeadLetter({ deliveryId: delivery.deliveryId });
  say(
    `✓ dead letter after ${deadLetter?.attemptCount} attempts: ${deadLetter?.lastErrorMessage} (“${Buffer.from(deadLetter?.lastResponseBody ?? []).toString()}”)`,
  );
  bad.state.status = 200;
  await acme.deadLetters.replayDeadLetter({ deliveryId: delivery.deliveryId });
  while ((await stateNow())?.state !== DeliveryState.SUCCEEDED) await wait(20);
  const { attempts } = await acme.events.listAttempts({ deliveryId: delivery.deliveryId });
  say(
    `✓ the endpoint was mended, the dead letter replayed and delivered: attempts ${attempts.map((a) => a.status).join(', ')}`,
  );
  good.close();
  bad.close();
} finally {
  await dispatch[Symbol.asyncDispose]();
  await removeEmbedded(dataDir);
}
say('✓ stopped; everything of the demo was removed');
process.exit(0);
