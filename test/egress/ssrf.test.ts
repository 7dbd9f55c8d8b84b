// The guard at every way out: over 250 spellings, rebinding names, and the public controls that must pass.
import { createSocket } from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import type { AddressInfo } from 'node:net';
import { createServer, type Server } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { urlProblem } from '../../src/domain/subscription.ts';
import { createAuthorizer } from '../../src/egress/authorization.ts';
import { createConnect } from '../../src/egress/connector.ts';
import { createFetcher } from '../../src/egress/fetcher.ts';
import { createAddressGuard } from '../../src/egress/guard.ts';
import { createResolver } from '../../src/egress/resolver.ts';
import { createSender } from '../../src/egress/sender.ts';
import { sendTo } from '../support/send.ts';
import { PUBLIC_HOSTS, REFUSED_HOSTS, REFUSED_URLS } from '../support/ssrf-spellings.ts';

const guard = createAddressGuard([]);
let trap: Server;
let trapPort: number;
let connections = 0;

beforeAll(async () => {
  // Everything on loopback that could be reached by mistake would be reached here.
  trap = createServer((socket) => {
    connections++;
    socket.destroy();
  });
  await new Promise<void>((done) => trap.listen(0, '0.0.0.0', done));
  trapPort = (trap.address() as AddressInfo).port;
});
afterAll(() => new Promise((done) => trap.close(done)));

const judge = (url: string) => urlProblem(url) ?? guard.urlProblem(new URL(url), false);

describe('of the spellings', () => {
  test(`there are over 250 (${REFUSED_URLS.length})`, () => {
    expect(new Set(REFUSED_URLS).size).toBeGreaterThanOrEqual(250);
  });

  test.each(REFUSED_URLS)('%s is refused as an endpoint', (url) => {
    expect(judge(url)).toBeTypeOf('string');
  });

  test('none is connected to, by deliveries, token or key fetches', async () => {
    const connect = createConnect(guard, createResolver([]));
    await using sender = createSender(connect, () => performance.now());
    const fetcher = createFetcher(connect);
    const authorizer = createAuthorizer(fetcher, () => performance.now());
    let tried = 0;
    for (const host of REFUSED_HOSTS) {
      for (const scheme of ['http', 'https']) {
        const url = URL.parse(`${scheme}://${host}:${trapPort}/`);
        if (url === null) continue; // not a URL at all
        tried++;
        const result = await sendTo(sender, url);
        expect(result, url.href).toMatchObject({ kind: 'failure', errorClass: 'blocked_address' });
        await expect(fetcher(url.href, { method: 'GET', headers: {} }), url.href).rejects.toThrow();
        const auth = {
          kind: 'oauth2' as const,
          tokenUrl: url.href,
          clientId: 'a',
          clientSecret: 'b',
          scopes: [],
          audience: '',
        };
        await expect(Promise.resolve(authorizer.of(host, auth)), url.href).rejects.toThrow(/not have/);
      }
    }
    expect(tried).toBeGreaterThan(400);
    expect(connections).toBe(0);
  }, 60_000);
});

test.each(PUBLIC_HOSTS)('the public control %s passes', (host) => {
  expect(judge(`https://${host}/hook`)).toBeUndefined();
  if (!/[a-z]\.com/.test(host)) expect(guard.allows(host.replace(/^\[|\]$/g, ''))).toBe(true);
});

test('a port of a database is refused also where a name leads to a public address', () => {
  expect(guard.allowsPort('1.1.1.1', '6379')).toBe(false);
  expect(guard.allowsPort('1.1.1.1', '443')).toBe(true);
  expect(createAddressGuard(['127.0.0.0/8']).allowsPort('127.0.0.1', '6379')).toBe(true);
});

/** A name server that answers A queries as it is told, with a time to live of 0, and AAAA with nothing. */
async function startNameServer(answers: (name: string) => readonly string[]) {
  const socket = createSocket('udp4');
  socket.on('message', (query, from) => {
    let at = 12;
    const labels: string[] = [];
    while (query[at] !== 0) {
      const length = query[at]!;
      labels.push(query.toString('latin1', at + 1, at + 1 + length));
      at += length + 1;
    }
    const question = query.subarray(12, at + 5);
    const isA = query.readUInt16BE(at + 1) === 1;
    const found = isA ? answers(labels.join('.')) : [];
    const head = Buffer.alloc(12);
    query.copy(head, 0, 0, 2);
    head.writeUInt16BE(0x8180, 2);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(found.length, 6);
    const records = found.map((address) =>
      Buffer.concat([
        Buffer.from([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]),
        Buffer.from(address.split('.').map(Number)),
      ]),
    );
    socket.send(Buffer.concat([head, question, ...records]), from.port, from.address);
  });
  await new Promise<void>((done) => socket.bind(0, '127.0.0.1', done));
  return {
    server: `127.0.0.1:${socket.address().port}`,
    [Symbol.asyncDispose]: async () => void socket.close(),
  };
}

test('1,000 rebinding attempts, public first and private then, and mixed answers, make 0 connections', async () => {
  const asked = new Map<string, number>();
  await using names = await startNameServer((name) => {
    const times = asked.get(name) ?? 0;
    asked.set(name, times + 1);
    if (name.startsWith('mixed'))
      return times % 2 === 0 ? ['93.184.216.34', '127.0.0.1'] : ['127.0.0.1', '93.184.216.34'];
    return times === 0 ? ['93.184.216.34'] : ['127.0.0.1'];
  });
  const connect = createConnect(guard, createResolver([names.server]));
  await using sender = createSender(connect, () => performance.now());
  const check = new Resolver();
  check.setServers([names.server]);
  let refused = 0;
  for (let i = 0; i < 1_000; i += 20) {
    const batch = Array.from({ length: 20 }, async (_, k) => {
      const name = `${k % 2 === 0 ? 'rebind' : 'mixed'}-${i + k}.example.com`;
      const url = `http://${name}:${trapPort}/`;
      expect(guard.urlProblem(new URL(url), true)).toBeUndefined(); // the name itself gives nothing away
      // Whoever looked when the subscription was made saw a public address.
      if (name.startsWith('rebind')) expect(await check.resolve4(name)).toEqual(['93.184.216.34']);
      const result = await sendTo(sender, new URL(url));
      expect(result).toMatchObject({ kind: 'failure', errorClass: 'blocked_address' });
      refused++;
    });
    await Promise.all(batch);
  }
  expect(refused).toBe(1_000);
  expect(connections).toBe(0);
}, 60_000);

test('a name server that does not answer costs its own attempts 2 s, and no other name any', async () => {
  const silent = createSocket('udp4');
  await new Promise<void>((done) => silent.bind(0, '127.0.0.1', done));
  const slow = createResolver([`127.0.0.1:${silent.address().port}`]);
  await using names = await startNameServer(() => ['127.0.0.1']);
  const quick = createResolver([names.server]);
  const stuck = Promise.allSettled(Array.from({ length: 50 }, (_, i) => slow(`slow-${i}.example.com`)));
  let done = false;
  void stuck.then(() => {
    done = true;
  });
  for (let i = 0; i < 50; i++) expect(await quick(`quick-${i}.example.com`)).toEqual(['127.0.0.1']);
  expect(done).toBe(false);
  const outcomes = await stuck;
  expect(outcomes.every((o) => o.status === 'rejected' && o.reason.code === 'EAI_AGAIN')).toBe(true);
  silent.close();
}, 20_000);
