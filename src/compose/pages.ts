// The HTTP port of any process: where it listens, and the pages that it has whatever its roles are.
import type { ServerAddress } from '../rpc/grpc-server.ts';
import { type Pages, startPagesServer } from '../rpc/health-pages.ts';
import { createMetricsText } from '../telemetry/cluster-metrics.ts';
import { MAX_SKEW_SECONDS } from './heartbeat.ts';
import type { Shared } from './shared.ts';

/** How to listen on a port. */
export function addressFor({ config, log }: Shared, port: number): ServerAddress {
  return {
    host: config.host,
    port,
    maxConnections: config.maxConnections,
    tls: config.tls,
    onReload: (error) => {
      if (error === undefined) log.info({ port }, 'new certificates are in use');
      else log.error(error, 'new certificates could not be used; the old ones go on', { port });
    },
  };
}

/** Listens for pages alone: health and metrics of a process without the api role. Rejects when the port is taken. */
export async function startPages(shared: Shared, stack: AsyncDisposableStack): Promise<number> {
  const { config } = shared;
  const server = await startPagesServer(pagesOf(shared), addressFor(shared, config.httpPort));
  stack.defer(() => server.close(config.shutdownGraceMs));
  return server.port;
}

/** Health and metrics; ask once for each process. */
export function pagesOf({ db, metrics, limits, skewSeconds }: Shared): Pages {
  const metricsText = createMetricsText(metrics.registry);
  const text = (status: number, body: string) => ({ status, contentType: 'text/plain', body: `${body}\n` });
  const degraded = () => {
    const reasons = [
      ...(limits.health() === 'degraded' ? ['Redis is away, limits are local'] : []),
      ...(Math.abs(skewSeconds()) > MAX_SKEW_SECONDS
        ? ['the clocks of this host and of the database differ']
        : []),
    ];
    return reasons.length === 0 ? undefined : `degraded: ${reasons.join('; ')}`;
  };
  return {
    '/healthz': async () => text(200, 'ok'),
    '/readyz': () =>
      db.engine.query({ name: 'ready', text: 'SELECT 1' }).then(
        () => text(200, degraded() ?? 'ready'),
        () => text(503, 'the database is not available'),
      ),
    '/metrics': async () => ({
      status: 200,
      contentType: metrics.registry.contentType,
      body: await metricsText(),
    }),
  };
}
