// What `npm start` prints: commands that work when pasted.
import type { Config } from './config.ts';
import type { Installed } from './install.ts';

/** Where an instance listens; without the api role it has no gRPC port, and HTTP for health and metrics alone. */
export type Ports = { readonly httpPort: number; readonly grpcPort: number | undefined };

/** The lines after a start. */
export function quickStart(config: Config, installed: Installed, ports: Ports): string {
  const host = config.host === '0.0.0.0' || config.host === '::' ? '127.0.0.1' : config.host;
  const scheme = config.tls === undefined ? 'http' : 'https';
  const url = `${scheme}://${host.includes(':') ? `[${host}]` : host}:${ports.httpPort}`;
  if (ports.grpcPort === undefined) {
    const roles = [...config.roles].join(', ');
    return `dispatch is ready (${roles}): /healthz, /readyz and /metrics on ${url}\n`;
  }
  const call = (method: string, body: object) =>
    `  curl -sS ${url}/dispatch.v1.${method} -H "authorization: Bearer $KEY" -H 'content-type: application/json' \\\n` +
    `    -d '${JSON.stringify(body)}'`;
  const fromFile = config.adminKey === undefined && config.databaseUrl === undefined;
  const key = fromFile ? `$(cat '${config.dataDir}/admin-key')` : '<your DISPATCH_ADMIN_KEY>';
  const allowed = config.allowEndpointCidrs.length > 0;
  const lines = [
    '',
    `dispatch is ready: HTTP (Connect, gRPC-Web, gRPC) on ${url}, gRPC on ${host}:${ports.grpcPort}`,
  ];
  if (installed.isAdminKeyNew) {
    lines.push(`Your platform key, kept in ${config.dataDir}/admin-key: ${installed.adminKey}`);
  }
  lines.push(
    '',
    'Paste these into another terminal:',
    '',
    `  KEY="${key}"`,
    call('TenantService/CreateTenant', { tenant: { tenantId: 'acme' } }),
    call('SubscriptionService/CreateSubscription', {
      tenantId: 'acme',
      subscription: {
        url: allowed ? 'http://127.0.0.1:9000/' : 'https://example.com/webhooks',
        eventTypes: ['order.*'],
      },
    }),
    call('PublishService/Publish', {
      tenantId: 'acme',
      event: { type: 'order.created', data: { orderId: 123 } },
    }),
    call('EventService/ListDeliveries', { tenantId: 'acme' }),
    '',
  );
  if (!allowed) {
    lines.push(
      'To deliver to a receiver on this machine, start with DISPATCH_ALLOW_ENDPOINT_CIDRS=127.0.0.0/8,::1/128',
      'or see it all at once: npm run demo',
      '',
    );
  }
  return lines.join('\n');
}
