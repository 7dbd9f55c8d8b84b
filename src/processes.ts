// --processes N: one parent that owns the embedded database and keeps N children running on the same ports.
// A child says over its IPC channel that it is ready, with its ports.
import cluster, { type Worker } from 'node:cluster';
import { AggregatorRegistry } from 'prom-client';
import type { Installed } from './install.ts';
import type { Ports } from './quick-start.ts';
import { tellMetrics } from './telemetry/cluster-metrics.ts';

const RESTART_MS = 1_000;

/** What a child says once it is ready. */
export type Ready = { readonly kind: 'ready'; readonly ports: Ports };

/** Runs until SIGTERM or SIGINT, then lets every child drain. A child that ends by itself is started again. */
export async function runProcesses(
  count: number,
  installed: Installed,
  onReady: (ports: Ports) => void,
): Promise<void> {
  const environment = {
    DISPATCH_DATABASE_URL: installed.databaseUrl,
    DISPATCH_ADMIN_KEY: installed.adminKey,
    DISPATCH_MASTER_KEYS: installed.masterKeys.map((k) => `${k.id}:${k.key.toString('base64')}`).join(','),
  };
  const metrics = new AggregatorRegistry();
  let stopping = false;
  let everReady = false;
  const children = new Set<Worker>();
  await new Promise<void>((done, fail) => {
    const start = () => {
      if (stopping) return;
      const child = cluster.fork(environment);
      children.add(child);
      child.on('message', (message: Ready | { readonly kind?: unknown }) => {
        if (message.kind !== 'ready') return;
        if (!everReady) onReady((message as Ready).ports);
        everReady = true;
      });
      tellMetrics(metrics, child);
      child.on('error', () => {}); // a message that it did not live to get; that it has ended is heard below
      child.once('exit', (code) => {
        children.delete(child);
        if (stopping) {
          if (children.size === 0) done();
        } else if (!everReady && code === 1) {
          stopping = true;
          fail(new Error('a process could not start; its reason is above'));
        } else {
          setTimeout(start, RESTART_MS);
        }
      });
    };
    const stop = () => {
      stopping = true;
      for (const child of children) child.process.kill('SIGTERM');
      if (children.size === 0) done();
    };
    process.on('SIGTERM', stop);
    process.on('SIGINT', stop);
    for (let i = 0; i < count; i++) start();
  });
}
