// What happened when: publishes acked, deliveries received and faults injected, as a picture.

export type Timeline = {
  readonly acked: (count: number) => void;
  readonly received: () => void;
  /** A fault, or its end; a few words. */
  readonly fault: (label: string) => void;
  readonly toSvg: (title: string) => string;
};

type Fault = { readonly atMs: number; readonly label: string };

const BUCKET_MS = 250;
const WIDTH = 960;
const HEIGHT = 220;
const LEFT = 60;
const RIGHT = 16;
const TOP = 40;
const BOTTOM = 56;
/** More labels than this are not legible: the rest are ticks. */
const MAX_LABELS = 24;
const COLOURS = { acked: '#2563eb', received: '#16a34a', fault: '#dc2626' };

const escaped = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
const text = (x: number, y: number, content: string, more = '') =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" font-family="sans-serif" font-size="11" fill="#111827" ${more}>${escaped(content)}</text>`;

/** Begins now. */
export function createTimeline(): Timeline {
  const startedAt = performance.now();
  const acked: number[] = [];
  const received: number[] = [];
  const faults: Fault[] = [];
  const now = () => performance.now() - startedAt;
  const add = (to: number[], count: number) => {
    const bucket = Math.floor(now() / BUCKET_MS);
    to[bucket] = (to[bucket] ?? 0) + count;
  };
  return {
    acked: (count) => add(acked, count),
    received: () => add(received, 1),
    fault: (label) => void faults.push({ atMs: now(), label }),
    toSvg: (title) => draw(title, acked, received, faults, now()),
  };
}

function draw(
  title: string,
  acked: readonly number[],
  received: readonly number[],
  faults: readonly Fault[],
  tookMs: number,
): string {
  const buckets = Math.max(1, Math.ceil(tookMs / BUCKET_MS));
  const rate = (counts: readonly number[], i: number) => (counts[i] ?? 0) * (1000 / BUCKET_MS);
  let most = 1;
  for (let i = 0; i < buckets; i++) most = Math.max(most, rate(acked, i), rate(received, i));
  const x = (ms: number) => LEFT + (ms / tookMs) * (WIDTH - LEFT - RIGHT);
  const y = (value: number) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - TOP - BOTTOM);
  const line = (counts: readonly number[], colour: string) => {
    const points = Array.from(
      { length: buckets },
      (_, i) => `${x((i + 0.5) * BUCKET_MS).toFixed(1)},${y(rate(counts, i)).toFixed(1)}`,
    );
    return `<polyline fill="none" stroke="${colour}" stroke-width="1.2" points="${points.join(' ')}"/>`;
  };
  const step = Math.max(1, Math.ceil(faults.length / MAX_LABELS));
  const marks = faults.map(({ atMs, label }, i) => {
    const at = x(atMs).toFixed(1);
    const tick = `<path d="M${at} ${TOP}V${HEIGHT - BOTTOM}" stroke="${COLOURS.fault}" stroke-width="0.7" opacity="0.6"/>`;
    if (i % step !== 0) return tick;
    const row = HEIGHT - BOTTOM + 26 + ((i / step) % 3) * 10;
    return tick + text(x(atMs), row, label, `text-anchor="middle" fill-opacity="0.8"`);
  });
  const seconds = tookMs / 1000;
  const body = [
    text(8, 18, title, 'font-weight="bold"'),
    text(WIDTH - 250, 18, '— acked /s', `style="fill:${COLOURS.acked}"`),
    text(WIDTH - 170, 18, '— received /s', `style="fill:${COLOURS.received}"`),
    text(WIDTH - 80, 18, `| faults (${faults.length})`, `style="fill:${COLOURS.fault}"`),
    `<path d="M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}" fill="none" stroke="#6b7280"/>`,
    text(4, TOP + 4, Math.round(most).toLocaleString('en')),
    text(4, HEIGHT - BOTTOM, '0'),
    ...[0, 0.25, 0.5, 0.75, 1].map((part) =>
      text(
        x(tookMs * part),
        HEIGHT - BOTTOM + 14,
        `${(seconds * part).toFixed(0)} s`,
        'text-anchor="middle"',
      ),
    ),
    ...marks,
    line(acked, COLOURS.acked),
    line(received, COLOURS.received),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}"><title>${escaped(title)}</title><rect width="100%" height="100%" fill="#ffffff"/>${body.join('')}</svg>\n`;
}
