/** The body of every benchmark: 452 bytes of JSON, the same as the floor programs'. */
export const BODY = Buffer.from(
  JSON.stringify({
    order_id: '12345',
    amount: 99.9,
    items: Array.from({ length: 8 }, (_, i) => ({ sku: `sku-${i}`, qty: i, name: 'some product name' })),
  }),
);

/** Tenants that the load is spread over. */
export const TENANTS = Array.from({ length: 100 }, (_, i) => `tenant-${i}`);
