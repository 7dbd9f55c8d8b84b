// Over 250 spellings × create, update, test, deliver and token URLs, through the API of a service that allows nothing.
import { Code, ConnectError } from '@connectrpc/connect';
import { expect, test } from 'vitest';
import { uuidOf } from '../../src/domain/ids.ts';
import { eventually } from '../support/eventually.ts';
import { newTenant, startTestInstance } from '../support/instance.ts';
import { REFUSED_URLS } from '../support/ssrf-spellings.ts';

test(`${REFUSED_URLS.length} spellings × create, update, token URL, test and deliver are all refused, and tell nothing of the network`, async () => {
  await using dispatch = await startTestInstance({ DISPATCH_ALLOW_ENDPOINT_CIDRS: '' });
  const clients = dispatch.clients((await newTenant(dispatch.clients(), 'acme')).key);
  const refusal = (work: Promise<unknown>) =>
    work.then(
      () => 'accepted',
      (error) => `${ConnectError.from(error).code} ${error.message}`,
    );
  const good = { url: 'https://example.com/hook', eventTypes: ['none'] };
  const { subscription } = await clients.subscriptions.createSubscription({ subscription: good });
  const { subscriptionId } = subscription!;
  const invalid = new RegExp(`^${Code.InvalidArgument} .*`);
  for (const url of REFUSED_URLS) {
    const created = refusal(clients.subscriptions.createSubscription({ subscription: { ...good, url } }));
    expect(await created, url).toMatch(invalid);
    expect(await created, url).toContain('subscription.url');
    const update = { subscription: { subscriptionId, url }, updateMask: { paths: ['url'] } };
    expect(await refusal(clients.subscriptions.updateSubscription(update)), url).toMatch(invalid);
    const value = { tokenUrl: url, clientId: 'a', clientSecret: 'b' };
    const auth = { kind: { case: 'oauth2' as const, value } };
    const tokens = refusal(clients.subscriptions.createSubscription({ subscription: { ...good, auth } }));
    expect(await tokens, url).toContain('subscription.auth.oauth2.token_url');
  }

  // As if they had been stored before a rule was there: the same at the connection.
  const storable = REFUSED_URLS.filter((url) => /^https?:$/.test(URL.parse(url)?.protocol ?? ''));
  const hosts = storable.filter((url) => !/example\.com/.test(url));
  expect(hosts.length).toBeGreaterThanOrEqual(230);
  const stored: string[] = [];
  for (const url of hosts) {
    const made = await clients.subscriptions.createSubscription({
      subscription: { ...good, eventTypes: ['all.*'] },
    });
    stored.push(made.subscription!.subscriptionId);
    await dispatch.database.owner.query('UPDATE subscriptions SET url = $1 WHERE id = $2', [
      url,
      uuidOf(made.subscription!.subscriptionId),
    ]);
  }
  for (const [i, id] of stored.entries()) {
    const result = await clients.subscriptions.testSubscription({ subscriptionId: id });
    expect(result, hosts[i]).toMatchObject({ succeeded: false, status: 0, errorClass: 'blocked_address' });
    expect(result.errorMessage).toBe('the URL leads to an address that endpoints may not have');
  }
  const { eventId, deliveryCount } = await clients.publish.publish({
    event: { type: 'all.x', body: { case: 'data', value: {} } },
  });
  expect(deliveryCount).toBe(stored.length);
  await eventually(async () => {
    const { rows } = await dispatch.database.owner.query(
      `SELECT error_class, error_message, count(DISTINCT subscription_id)::int AS n FROM attempts
       WHERE attempt = 1 GROUP BY 1, 2`,
    );
    expect(rows).toEqual([
      {
        error_class: 'blocked_address',
        error_message: 'the URL leads to an address that endpoints may not have',
        n: stored.length,
      },
    ]);
  });
  expect(eventId).toMatch(/^evt_/);
}, 240_000);
