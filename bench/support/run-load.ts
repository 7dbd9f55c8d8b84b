// Runs a load program to its end and reads the last line that it prints.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { Child, Product } from './processes.ts';

const run = promisify(execFile);

/** What a load did, and the CPU seconds that its own process took. */
export type Load = { readonly events: number; readonly perSecond: number; readonly cpuSeconds: number };

export async function runLoad(file: string, args: readonly (string | number)[]): Promise<Load> {
  const path = new URL(`../${file}`, import.meta.url).pathname;
  const { stdout } = await run(process.execPath, [path, ...args.map(String)], { maxBuffer: 1 << 20 });
  return JSON.parse(stdout.trimEnd().split('\n').pop() ?? '');
}

/** How to publish: see load.ts. */
export type Publishing = {
  readonly kind: 'batch' | 'stream' | 'unary' | 'json';
  readonly port: number;
  readonly seconds: number;
  readonly callers: number;
  /** Events of a call. */
  readonly size: number;
  /** The port of a sink that everything arrives at. */
  readonly sink?: string;
  /** Deliveries of an event. */
  readonly fanOut?: number;
  readonly tenants?: number;
  readonly types?: number;
  /** Of `json`: KiB of JSON in `data`, instead of the usual payload. */
  readonly data?: number;
};

/** Publishes as fast as it is answered. */
export function publish({ kind, port, fanOut, ...rest }: Publishing): Promise<Load> {
  const options = Object.entries({ ...rest, 'fan-out': fanOut }).filter(([, value]) => value !== undefined);
  return runLoad('load.ts', [kind, port, ...options.map(([name, value]) => `--${name}=${value}`)]);
}

/** Events a second end to end, published in the usual batches to a product whose deliveries go to a sink. */
export function batchRate(product: Product, sink: Child): (seconds: number) => Promise<number> {
  const load = {
    kind: 'batch',
    port: product.grpcPort,
    callers: 4,
    size: 200,
    sink: sink.firstLine,
  } as const;
  return async (seconds) => (await publish({ ...load, seconds })).perSecond;
}
