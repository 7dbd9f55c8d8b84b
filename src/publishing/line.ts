// Which line a delivery waits in.
import type { Target } from '../storage/targets.ts';

/** The line of a whole subscription. */
const WHOLE = '*';

/** Undefined: none. An event without a key has a line of its own, if its subscription orders by key. */
export function lineOf(
  { ordering }: Pick<Target, 'ordering'>,
  orderingKey: string,
  deliveryId: Buffer,
): string | undefined {
  switch (ordering) {
    case 'none':
      return undefined;
    case 'subscription':
      return WHOLE;
    case 'key':
      return orderingKey === '' ? `-${deliveryId.toString('base64url')}` : orderingKey;
  }
}
