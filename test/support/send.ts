// Sends through a sender of its own, as a worker does, and waits for what came of it.
import type { SendOutcome } from '../../src/domain/delivery.ts';
import type { createSender } from '../../src/egress/sender.ts';

/** An empty POST to the root of `url`'s origin, with 5 s to end. */
export const sendTo = (sender: ReturnType<typeof createSender>, url: URL): Promise<SendOutcome> =>
  new Promise((done) =>
    sender.send(
      {
        origin: url.origin,
        path: '/',
        headers: [],
        body: Buffer.alloc(0),
        timeoutMs: 5_000,
        tlsId: '',
        tls: undefined,
      },
      done,
    ),
  );
