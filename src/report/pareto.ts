import { escaped } from "./html.ts";
import { grouped, significant } from "./numbers.ts";

export interface Point {
  readonly label: string;
  /** What it costs; above 0, drawn on a logarithmic axis. */
  readonly x: number;
  /** What it comes to; less is better. */
  readonly y: number;
  /** Standard deviation of y. */
  readonly spread?: number;
}

export interface Plot {
  readonly title: string;
  readonly xTitle: string;
  readonly yTitle: string;
  readonly points: readonly Point[];
  /** A cost that is marked by a line. */
  readonly limit?: number;
}

const WIDTH = 760;
const LEFT = 64;
const RIGHT = 540;
const TOP = 44;
const LINE = 16;

const style = `.paper{fill:#fff}text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:14px}.axis,.tick{stroke:#767676;fill:none}.grid{stroke:#e4e4e4}.limit{stroke:#767676;stroke-dasharray:4 4}.lead{stroke:#c4c4c4;fill:none}.bar{stroke:#5b6b7b}.point{fill:#5b6b7b}.front{fill:#b3261e}.frontline{stroke:#b3261e;fill:none;stroke-width:1.5}.on{font-weight:600;fill:#b3261e}@media(prefers-color-scheme:dark){.paper{fill:#16181b}text{fill:#e6e6e6}.grid{stroke:#303337}.axis,.tick,.limit{stroke:#8f959b}.lead{stroke:#4a4f55}.bar{stroke:#a9b8c6}.point{fill:#a9b8c6}.front{fill:#ff8a80}.frontline{stroke:#ff8a80}.on{fill:#ff8a80}}`;

/** The points that no other point beats in cost without being worse, from the cheapest on. */
export function paretoFront(points: readonly Point[]): Point[] {
  let least = Infinity;
  return points
    .toSorted((a, b) => a.x - b.x || a.y - b.y)
    .filter(({ y }) => {
      if (y >= least) return false;
      least = y;
      return true;
    });
}

/** Powers of ten between two numbers, and twice and five times those where that leaves room; round numbers on a short axis. */
function logTicks(from: number, to: number): number[] {
  if (to / from < 4) return linearTicks(from, to);
  const powers = Array.from({ length: Math.floor(Math.log10(to)) - Math.floor(Math.log10(from)) + 1 }, (_, i) => 10 ** (Math.floor(Math.log10(from)) + i));
  const digits = to / from > 300 ? [1] : [1, 2, 5];
  return powers.flatMap((power) => digits.map((digit) => digit * power)).filter((tick) => tick >= from && tick <= to);
}

/** About five round numbers between two. */
function linearTicks(from: number, to: number): number[] {
  const raw = (to - from) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((digit) => digit * power >= raw) ?? 10);
  return Array.from({ length: Math.floor(to / step) - Math.ceil(from / step) + 1 }, (_, i) => (Math.ceil(from / step) + i) * step);
}

/** Heights for labels in a column: in order, a line apart, together as near to their points as that allows. */
function spaced(heights: readonly number[], bottom: number): number[] {
  // without the lines between them they must not fall; where they would, neighbours share their mean
  const blocks: { sum: number; count: number }[] = [];
  heights.forEach((height, i) => {
    let block = { sum: height - i * LINE, count: 1 };
    for (let last = blocks.at(-1); last && last.sum / last.count > block.sum / block.count; last = blocks.at(-1)) {
      block = { sum: last.sum + block.sum, count: last.count + block.count };
      blocks.pop();
    }
    blocks.push(block);
  });
  const most = bottom - (heights.length - 1) * LINE;
  return blocks.flatMap(({ sum, count }) => Array.from({ length: count }, () => Math.max(TOP, Math.min(most, sum / count)))).map((at, i) => at + i * LINE);
}

/**
 * A scatter plot of cost and result as SVG, with the front of what nothing else beats. It follows the reader's light or dark
 * scheme and says in words what it shows.
 *
 * @example
 * paretoPlot({ title: "Loss by size", xTitle: "parameters", yTitle: "loss", points: [{ label: "lora", x: 1120, y: 3.4 }] });
 */
export function paretoPlot({ title, xTitle, yTitle, points, limit }: Plot): string {
  if (points.length === 0) return "";
  const bottom = Math.max(360, TOP + 1.25 * LINE * points.length);
  const height = bottom + 52;
  const xs = [...points.map(({ x }) => x), ...(limit === undefined ? [] : [limit])];
  const [x0, x1] = [Math.min(...xs) / 1.25, Math.max(...xs) * 1.25];
  const [low, high] = [Math.min(...points.map(({ y, spread = 0 }) => y - spread)), Math.max(...points.map(({ y, spread = 0 }) => y + spread))];
  const pad = (high - low) * 0.08 || Math.abs(high) * 0.01 || 1;
  const [y0, y1] = [low - pad, high + pad];
  const px = (x: number): number => LEFT + ((RIGHT - 40 - LEFT) * Math.log(x / x0)) / Math.log(x1 / x0);
  const py = (y: number): number => bottom - ((bottom - TOP) * (y - y0)) / (y1 - y0);
  const front = paretoFront(points);
  const n = (value: number): string => String(Math.round(value * 10) / 10);
  const line = (cls: string, xa: number, ya: number, xb: number, yb: number): string => `<path class="${cls}" d="M${n(xa)} ${n(ya)}L${n(xb)} ${n(yb)}"/>`;
  const text = (x: number, y: number, content: string, more = ""): string => `<text x="${n(x)}" y="${n(y)}"${more}>${escaped(content)}</text>`;
  const said = ({ label, x, y, spread }: Point): string =>
    `${label}: ${significant(y)}${spread === undefined ? "" : ` ± ${significant(spread, 2)}`} at ${grouped(x)}`;
  const ordered = points.toSorted((a, b) => b.y - a.y);
  const heights = spaced(
    ordered.map(({ y }) => py(y)),
    bottom,
  );
  const parts = [
    `<rect class="paper" width="${WIDTH}" height="${height}"/>`,
    text(LEFT, 22, title, ' class="title"'),
    ...linearTicks(y0, y1).flatMap((y) => [line("grid", LEFT, py(y), RIGHT - 40, py(y)), text(LEFT - 8, py(y) + 4, significant(y), ' text-anchor="end"')]),
    ...logTicks(x0, x1).flatMap((x) => [line("tick", px(x), bottom, px(x), bottom + 5), text(px(x), bottom + 20, grouped(x), ' text-anchor="middle"')]),
    line("axis", LEFT, bottom, RIGHT - 40, bottom),
    text((LEFT + RIGHT - 40) / 2, bottom + 42, xTitle, ' text-anchor="middle"'),
    text(0, 0, yTitle, ` text-anchor="middle" transform="translate(16 ${n((TOP + bottom) / 2)}) rotate(-90)"`),
    ...(limit === undefined ? [] : [line("limit", px(limit), TOP, px(limit), bottom), text(px(limit), TOP - 4, "budget", ' text-anchor="middle"')]),
    `<path class="frontline" d="M${front.map(({ x, y }, i) => `${i === 0 ? "" : `H${n(px(x))}V`}${i === 0 ? `${n(px(x))} ` : ""}${n(py(y))}`).join("")}H${RIGHT - 40}"/>`,
    ...ordered.map(({ x, y }, i) => `<path class="lead" d="M${n(px(x))} ${n(py(y))}L${RIGHT - 12} ${n(heights[i]!)}H${RIGHT - 4}"/>`),
    ...ordered.flatMap((point, i) => {
      const on = front.includes(point);
      const { x, y, spread, label } = point;
      return [
        ...(spread ? [line("bar", px(x), py(y - spread), px(x), py(y + spread))] : []),
        `<circle class="${on ? "front" : "point"}" cx="${n(px(x))}" cy="${n(py(y))}" r="4"><title>${escaped(said(point))}</title></circle>`,
        text(RIGHT, heights[i]! + 4, `${label} ${significant(y)}`, on ? ' class="on"' : ""),
      ];
    }),
  ];
  const words = `${yTitle} over ${xTitle}; less is better. On the front: ${front.map(said).join("; ")}.`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" aria-label="${escaped(title)}"><title>${escaped(title)}</title><desc>${escaped(words)}</desc><style>${style}</style>${parts.join("\n")}</svg>\n`;
}
