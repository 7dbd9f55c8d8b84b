// A TCP proxy between two real programs, which does to their bytes what networks do: it watches them pass, delays
// them, swallows them, cuts the connection in front of them, or goes half-open.

import type { AddressInfo } from 'node:net';
import { connect, createServer, type Socket } from 'node:net';

/** Where bytes are going. */
export type Direction = 'up' | 'down';

/** A pair of sockets through the proxy. */
export type Link = {
  /** Resets both sides at once. */
  readonly cut: () => void;
  /** What this link has carried, for whoever watches it. */
  readonly bytes: { up: number; down: number };
};

/**
 * What becomes of a chunk: `pass`, `swallow` (it is gone, the connection stays), `cut` (both sides are reset before
 * the chunk arrives), or bytes that pass instead: a part of it.
 */
export type Fate = 'pass' | 'swallow' | 'cut' | Buffer;

export type ProxyRules = {
  /** Asked about every chunk; a chunk is what one read brought, so a pattern may be split over two only when it is long. */
  onChunk: (chunk: Buffer, direction: Direction, link: Link) => Fate;
  /** Called when a client has connected, before anything is passed on. */
  onConnect: (link: Link) => void;
  /** Added to every chunk, in ms. */
  delayMs: number;
  /** New connections are reset at once. */
  isDown: boolean;
  /** Nothing passes any more and nothing is closed, on connections old and new. */
  isHalfOpen: boolean;
};

export type Proxy = AsyncDisposable & {
  readonly port: number;
  /** May change at any time. */
  readonly rules: ProxyRules;
  /** Where new connections go. */
  target: { readonly host: string; readonly port: number };
  readonly links: ReadonlySet<Link>;
  /** Resets every connection. */
  readonly cutAll: () => void;
};

/** Starts one on loopback that lets everything pass. */
export async function startProxy(targetPort: number): Promise<Proxy> {
  const links = new Set<Link>();
  const rules: ProxyRules = {
    onChunk: () => 'pass',
    onConnect: () => {},
    delayMs: 0,
    isDown: false,
    isHalfOpen: false,
  };
  const server = createServer({ allowHalfOpen: false, noDelay: true }, (client) => {
    client.on('error', () => client.destroy());
    if (rules.isDown) {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect({ ...proxy.target, noDelay: true });
    const link: Link = {
      bytes: { up: 0, down: 0 },
      cut() {
        links.delete(link);
        client.resetAndDestroy();
        upstream.resetAndDestroy();
      },
    };
    links.add(link);
    upstream.on('error', () => link.cut());
    carry(client, upstream, 'up', link);
    carry(upstream, client, 'down', link);
    rules.onConnect(link);
  });

  function carry(from: Socket, to: Socket, direction: Direction, link: Link): void {
    from.on('data', (chunk: Buffer) => {
      if (rules.isHalfOpen) return;
      const fate = rules.onChunk(chunk, direction, link);
      if (fate === 'cut') link.cut();
      if (fate === 'cut' || fate === 'swallow' || to.destroyed) return;
      const passed = fate === 'pass' ? chunk : fate;
      link.bytes[direction] += passed.length;
      const pass = () => {
        if (to.destroyed || to.write(passed) || from.isPaused()) return;
        from.pause();
        to.once('drain', () => from.resume());
      };
      if (rules.delayMs > 0) setTimeout(pass, rules.delayMs);
      else pass();
    });
    from.on('close', () => {
      links.delete(link);
      if (rules.isHalfOpen) return; // the other side hears nothing of it
      if (!to.destroyed) to.end();
    });
  }

  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const proxy: Proxy = {
    port: (server.address() as AddressInfo).port,
    rules,
    target: { host: '127.0.0.1', port: targetPort },
    links,
    cutAll() {
      for (const link of [...links]) link.cut();
    },
    async [Symbol.asyncDispose]() {
      proxy.cutAll();
      await new Promise((done) => server.close(done));
    },
  };
  return proxy;
}
