import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, test } from 'vitest';
import { createCallPath } from '../../src/rpc/call-path.ts';
import { startConnectServer } from '../../src/rpc/connect-server.ts';

const REQUEST = 'GET /healthz HTTP/1.1\r\nhost: dispatch\r\n\r\n';
const nobody = () => {
  throw new Error('nobody calls');
};

test('a request that came before its idle connection was closed is answered, however long the process did nothing', async () => {
  const path = createCallPath({
    authenticate: nobody,
    unavailable: () => undefined,
    onDenied: () => {},
    onCall: () => {},
    now: () => performance.now(),
  });
  const healthy = async () => ({ status: 200, contentType: 'text/plain', body: 'ok\n' });
  const address = { host: '127.0.0.1', port: 0, maxConnections: 10, tls: undefined, onReload: () => {} };
  const server = await startConnectServer([], path, { '/healthz': healthy }, address);
  const client = connect(server.port, '127.0.0.1');
  await once(client, 'connect');
  client.write(REQUEST);
  await once(client, 'data');

  const closed = server.close(30_000);
  client.write(REQUEST); // it lies in the server's socket from here on
  blockFor(700); // as a process does that waits for a core: longer than idle connections are kept
  let answer = '';
  for await (const chunk of client) answer += chunk;
  expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  expect(answer.toLowerCase()).toContain('connection: close');
  await closed;
});

const blockFor = (ms: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
