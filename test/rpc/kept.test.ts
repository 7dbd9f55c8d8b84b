// What calls leave in memory until V8 collects all of its heap, which it does rarely. Until then the streams and the writes of calls
// that have ended live on, and what they lead to with them: here they are held for as long as it takes to see what that is.
import { createHook } from 'node:async_hooks';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import v8 from 'node:v8';
import vm from 'node:vm';
import { expect, test } from 'vitest';
import { PublishService } from '../../gen/dispatch/v1/publish_service_pb.ts';
import { type Principal, unauthenticated } from '../../src/rpc/authentication.ts';
import { bindService, createCallPath, type ServiceHandlers } from '../../src/rpc/call-path.ts';
import { startGrpcServer } from '../../src/rpc/grpc-server.ts';
import { eventually } from '../support/eventually.ts';

const CALLS = 40;
const BYTES = 200_000;
const run = promisify(execFile);

/** In a process of its own: what the caller keeps is not what this is about. */
const CALLER = `
  import { PublishService } from '${new URL('../../gen/dispatch/v1/publish_service_pb.ts', import.meta.url)}';
  import { grpcCaller } from '${new URL('../support/clients.ts', import.meta.url)}';
  const caller = grpcCaller(Number(process.argv[1]), 'key');
  const event = { type: 'order.created', body: { case: 'payload', value: Buffer.alloc(${BYTES}, '1') } };
  const codes = new Set();
  for (let i = 0; i < ${CALLS}; i++)
    await caller.call(PublishService.method.publish, { tenantId: 'acme', event }).then(() => codes.add(0), (e) => codes.add(e.code));
  console.log([...codes].join());
  process.exit(0);
`;

test.each([
  { what: 'is answered', knows: true, code: '0' },
  { what: 'is refused', knows: false, code: '16' },
])(
  'the bytes of a call that $what are free when the call has ended',
  async ({ knows, code }) => {
    v8.setFlagsFromString('--expose-gc');
    const gc = vm.runInNewContext('gc') as () => void;
    const bytesNow = () => {
      gc();
      return process.memoryUsage().arrayBuffers;
    };
    const streams: object[] = [];
    const writes: object[] = [];
    const holding = createHook({
      init: (_id, type, _by, handle) => {
        if (type === 'HTTP2STREAM') streams.push(handle);
        if (type === 'WRITEWRAP') writes.push(handle);
      },
    });
    const admin: Principal = { role: 'platform-admin', tenantId: undefined, actor: 'admin' };
    const path = createCallPath({
      authenticate: () => {
        if (!knows) throw unauthenticated('nobody calls');
        return admin;
      },
      unavailable: () => undefined,
      onDenied: () => {},
      onCall: () => {},
      now: () => performance.now(),
    });
    const handlers = { publish: async () => ({ eventId: 'evt_1' }) } as unknown as ServiceHandlers<
      typeof PublishService
    >;
    const address = { host: '127.0.0.1', port: 0, maxConnections: 10, tls: undefined, onReload: () => {} };
    const server = await startGrpcServer([bindService(PublishService, handlers)], path, address);
    try {
      const calls = async () => {
        const args = ['--input-type=module', '--eval', CALLER, String(server.port)];
        expect((await run(process.execPath, args, { timeout: 50_000 })).stdout.trim()).toBe(code);
      };
      await calls(); // what the first ones make stays, and is not what a call keeps
      const before = bytesNow();
      holding.enable();
      await calls();
      holding.disable();
      expect(streams).toHaveLength(CALLS);
      expect(writes.length).toBeGreaterThanOrEqual(knows ? CALLS : 0); // a refusal is trailers only
      // The last of them may still be on their way out of the server. Of a call not a tenth of its bytes may stay.
      await eventually(() => {
        const kept = bytesNow() - before;
        if (kept > (CALLS * BYTES) / 10) throw new Error(`${kept} bytes are kept`);
      }, 2_000);
    } finally {
      holding.disable();
      await server.close(1_000);
    }
  },
  60_000,
);
