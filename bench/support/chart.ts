// A picture of a run: for each scenario with a floor, both rates as bars with their spread, and the ratio.

export type Series = { readonly median: number; readonly min: number; readonly max: number };
export type Pair = { readonly scenario: string; readonly product: Series; readonly floor: Series };

const WIDTH = 720;
const LEFT = 130;
const RIGHT = 150;
const ROW = 46;
const TOP = 44;
const BAR = 14;
const COLOURS = { product: '#2563eb', floor: '#9ca3af' };

const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

function text(x: number, y: number, content: string, more = ''): string {
  return `<text x="${x}" y="${y}" font-family="sans-serif" font-size="12" fill="#111827" ${more}>${escaped(content)}</text>`;
}

/** A bar to the median, and a line over it from the least to the most. */
function bar(y: number, series: Series, scale: (value: number) => number, colour: string): string {
  const [from, to, end] = [scale(series.min), scale(series.max), scale(series.median)];
  const middle = y + BAR / 2;
  return [
    `<rect x="${LEFT}" y="${y}" width="${(end - LEFT).toFixed(1)}" height="${BAR}" fill="${colour}"/>`,
    `<path d="M${from.toFixed(1)} ${middle}H${to.toFixed(1)}" stroke="#111827" stroke-width="1.5"/>`,
    text(Math.max(end, to) + 6, y + 11, `${Math.round(series.median).toLocaleString('en')} /s`),
  ].join('');
}

/** An SVG document. `title` is a line above the bars. */
export function chart(title: string, pairs: readonly Pair[]): string {
  const most = Math.max(1, ...pairs.flatMap(({ product, floor }) => [product.max, floor.max]));
  const scale = (value: number) => LEFT + (value / most) * (WIDTH - LEFT - RIGHT);
  const rows = pairs.map(({ scenario, product, floor }, i) => {
    const y = TOP + i * ROW;
    const ratio = (product.median / floor.median).toFixed(2);
    return [
      text(8, y + 18, scenario),
      bar(y, product, scale, COLOURS.product),
      bar(y + BAR + 2, floor, scale, COLOURS.floor),
      text(WIDTH - 44, y + 18, ratio, 'font-weight="bold"'),
    ].join('');
  });
  const height = TOP + pairs.length * ROW + 8;
  const legend = [
    text(8, 20, title, 'font-weight="bold"'),
    `<rect x="${WIDTH - 220}" y="11" width="10" height="10" fill="${COLOURS.product}"/>`,
    text(WIDTH - 206, 20, 'dispatch'),
    `<rect x="${WIDTH - 140}" y="11" width="10" height="10" fill="${COLOURS.floor}"/>`,
    text(WIDTH - 126, 20, 'floor'),
    text(WIDTH - 44, 20, 'ratio'),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}"><rect width="100%" height="100%" fill="#ffffff"/>${[...legend, ...rows].join('')}</svg>\n`;
}
