import { describe, expect, test } from 'vitest';
import { parseConfig } from '../../src/config.ts';

function problems(env: Record<string, string>): readonly string[] {
  const result = parseConfig(env, '/srv/shop');
  return result.ok ? [] : result.problems;
}
const KEY = Buffer.alloc(32, 1).toString('base64');

describe('configuration', () => {
  test('needs nothing: everything runs embedded on loopback', () => {
    const result = parseConfig({}, '/srv/shop');
    expect(result.ok && result.config).toMatchObject({
      databaseUrl: undefined,
      host: '127.0.0.1',
      httpPort: 7480,
      grpcPort: 7481,
      dataDir: '/srv/shop/.dispatch',
      allowEndpointCidrs: [],
    });
  });

  test('with a database of one’s own, keys are required too', () => {
    const found = problems({ DISPATCH_DATABASE_URL: 'postgres://localhost/x' });
    expect(found).toHaveLength(2);
    expect(found.join()).toMatch(/DISPATCH_ADMIN_KEY.*DISPATCH_MASTER_KEYS/s);
  });

  test.each([
    ['DISPATCH_HTTP_PORT', '70000'],
    ['DISPATCH_GRPC_PORT', '-1'],
    ['DISPATCH_HTTP_PORT', '80 '],
    ['DISPATCH_ROLES', 'api,,worker'],
    ['DISPATCH_ADMIN_KEY', 'short'],
    ['DISPATCH_MASTER_KEYS', 'k1:AAAA'],
    ['DISPATCH_MASTER_KEYS', `k1:${KEY},k1:${KEY}`],
    ['DISPATCH_ALLOW_ENDPOINT_CIDRS', '127.0.0.1'],
    ['DISPATCH_ALLOW_ENDPOINT_CIDRS', '127.0.0.0/33'],
    ['DISPATCH_LOG_LEVEL', 'verbose'],
    ['DISPATCH_DATABASE_URL', 'mysql://x'],
    ['DISPATCH_DATABASE_URL', 'postgres://db/x?sslmode=prefer'],
    ['DISPATCH_DATABASE_URL', 'postgres://db/x?ssl=true'],
    ['DISPATCH_DATABASE_URL', 'postgres://db/x?sslmode=verify-full&sslcert=/a.pem'],
    ['DISPATCH_DIRECT_DATABASE_URL', 'postgres://db/x?sslmode=verify-ca'],
    ['DISPATCH_DIRECT_DATABASE_URL', 'mysql://x'],
    ['DISPATCH_DIRECT_DATABASE_URL', 'postgres://localhost/x'],
    ['DISPATCH_MAX_IN_FLIGHT', '0'],
    ['DISPATCH_UNKNOWN', '1'],
  ])('%s=%s stops the start with a line that names it', (name, value) => {
    expect(problems({ DISPATCH_ADMIN_KEY: 'x'.repeat(16), [name]: value }).join('\n')).toContain(name);
  });

  test('reports every problem at once', () => {
    expect(problems({ DISPATCH_HTTP_PORT: 'x', DISPATCH_GRPC_PORT: 'y', DISPATCH_ROLES: 'z' })).toHaveLength(
      3,
    );
  });
});
