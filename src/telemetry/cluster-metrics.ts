// The metrics of several processes on the same ports (--processes): whichever of them is asked tells of all, counters added
// up, so that a scrape does not meet another process's counters each time. A child asks its parent, which asks all children;
// the latter is prom-client's own protocol.
import cluster, { type Worker } from 'node:cluster';
import { AggregatorRegistry, type Registry, type RegistryContentType } from 'prom-client';

type Asked = { readonly kind: 'metrics-asked'; readonly id: number };
/** `text` is undefined when they could not be had. */
type Told = { readonly kind: 'metrics-told'; readonly id: number; readonly text: string | undefined };

const isOfKind = <K extends string>(message: unknown, kind: K): message is { readonly kind: K } =>
  typeof message === 'object' && message !== null && 'kind' in message && message.kind === kind;

/** A little longer than prom-client waits for the others. */
const MAX_WAIT_MS = 6_000;

/** In the parent: answers a child that asks for the metrics of all. */
export function tellMetrics(all: AggregatorRegistry<RegistryContentType>, child: Worker): void {
  child.on('message', (message: unknown) => {
    if (!isOfKind(message, 'metrics-asked')) return;
    const { id } = message as Asked;
    const tell = (text: string | undefined) => {
      if (child.isConnected()) child.send({ kind: 'metrics-told', id, text } satisfies Told);
    };
    all.clusterMetrics().then(tell, () => tell(undefined));
  });
}

/** What /metrics says: of this process, or of all that share its ports. Rejects when they cannot be had. */
export function createMetricsText(registry: Registry): () => Promise<string> {
  const { worker } = cluster;
  if (worker === undefined) return () => registry.metrics();
  new AggregatorRegistry(); // from now on this process answers its parent
  AggregatorRegistry.setRegistries(registry);
  const waiting = new Map<number, (text: string | undefined) => void>();
  let lastId = 0;
  process.on('message', (message: unknown) => {
    if (!isOfKind(message, 'metrics-told')) return;
    const { id, text } = message as Told;
    waiting.get(id)?.(text);
  });
  return () =>
    new Promise((done, fail) => {
      const id = ++lastId;
      const end = (text: string | undefined) => {
        clearTimeout(timer);
        waiting.delete(id);
        if (text === undefined) fail(new Error('the metrics of the other processes could not be had'));
        else done(text);
      };
      const timer = setTimeout(() => end(undefined), MAX_WAIT_MS);
      waiting.set(id, end);
      worker.send({ kind: 'metrics-asked', id } satisfies Asked);
    });
}
