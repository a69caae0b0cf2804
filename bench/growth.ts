import { mkdirSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import { gpt2Case, type Case } from "./models.ts";
import { rowsOf } from "./peer.ts";

const modes = ["lora", "full"] as const;
const middle = { width: 256, depth: 4, tokens: 128, threads: 2 };
type Axis = keyof typeof middle;
const axes: Record<Axis, readonly number[]> = {
  width: [128, 256, 512, 1024],
  depth: [2, 4, 8, 16],
  tokens: [64, 128, 256, 512, 1024],
  threads: [1, 2],
};

/** One point of the growth measurement, as given on the command line. */
export const growthCase = (width: number, depth: number, tokens: number): Case => gpt2Case("growth", width, depth, 8192, 4, tokens);

interface Point {
  readonly axis: Axis;
  readonly mode: string;
  readonly value: number;
  readonly ms: number;
  readonly mib: number;
  readonly outside: number;
}

/** How a step's time and memory grow with width, depth, tokens and threads: each point in processes of its own, spread over rounds. */
export async function growth(self: string, folder: string, rounds: number): Promise<void> {
  const points = new Map<string, Point>();
  for (let round = 0; round < rounds; round++)
    for (const [axis, values] of Object.entries(axes) as [Axis, readonly number[]][])
      for (const mode of modes)
        for (const value of values) {
          const at = { ...middle, [axis]: value };
          const size = Object.entries(at).map(([name, n]) => `--${name} ${n}`);
          const [row] = await rowsOf(`'${process.execPath}' '${self}' step --mode ${mode} ${size.join(" ")} --runs 5 --json`, process.env);
          const found = { axis, mode, value, ms: row!.min_s * 1000, mib: row!.peak_rss_mib, outside: Number(row!.extra["outside_products_percent"]) };
          const [key, best] = [`${axis} ${mode} ${value}`, points.get(`${axis} ${mode} ${value}`)];
          points.set(key, best && best.ms < found.ms ? best : found);
          console.error(`${axis}=${value} ${mode}: ${found.ms.toFixed(1)} ms, ${found.mib} MiB, ${found.outside} % outside of products`);
        }
  mkdirSync(folder, { recursive: true });
  const name = `${new Date().toISOString().slice(0, 10)}-growth`;
  writeFileSync(join(folder, `${name}.md`), table([...points.values()], name, rounds));
  writeFileSync(join(folder, `${name}.svg`), picture([...points.values()]));
}

/** Exponent of a power law through the last two points: what the growth tends to. */
function exponent(series: readonly Point[], of: (point: Point) => number): number {
  const [a, b] = series.slice(-2) as [Point, Point];
  return Math.log(of(b) / of(a)) / Math.log(b.value / a.value);
}

function table(points: readonly Point[], name: string, rounds: number): string {
  const lines = (Object.keys(axes) as Axis[]).flatMap((axis) =>
    modes.flatMap((mode) => {
      const series = points.filter((point) => point.axis === axis && point.mode === mode);
      const last = series.at(-1)!;
      return series.map((point) => {
        const grows = point === last ? `${exponent(series, ({ ms }) => ms).toFixed(2)} | ${exponent(series, ({ mib }) => mib).toFixed(2)}` : "|";
        return `| ${axis} | ${point.value} | ${mode} | ${point.ms.toFixed(1)} | ${Math.round(point.mib)} | ${point.outside} | ${grows} |`;
      });
    }),
  );
  const others = `width ${middle.width}, depth ${middle.depth}, 4×${middle.tokens} tokens, ${middle.threads} threads`;
  return `# How a training step grows

GPT-2 with 64 features a head and a vocabulary of 8192: ${others} where nothing else stands.
Fastest step of ${rounds} rounds of 5 (load of the machine at the end: ${loadavg()[0]!.toFixed(1)}), peak of the resident set of a process
of its own (some 60 MiB of it Node), share of the time outside of matrix products and attention. The exponents are those of a
power law through the last two points. ${cpus()[0]?.model ?? "?"}, ${cpus().length} cores, Node ${process.version}.

    npm run bench -- growth

![growth](${name}.svg)

| axis | value | step | ms | MiB | % outside | time ~ | memory ~ |
|---|--:|---|--:|--:|--:|--:|--:|
${lines.join("\n")}
`;
}

/** Time above, memory below, one column an axis; both logarithmic. */
function picture(points: readonly Point[]): string {
  const [width, height] = [250, 210];
  const { document } = parseHTML("<html><body></body></html>");
  const charts = (["ms", "mib"] as const).flatMap((measure, row) =>
    (Object.keys(axes) as Axis[]).map((axis, column) => {
      const data = points.filter((point) => point.axis === axis);
      const chart = Plot.plot({
        document,
        width,
        height,
        style: { background: "white", color: "#222", fontFamily: "sans-serif" },
        x: { type: "log", label: axis, ticks: [...axes[axis]], tickFormat: "d" },
        y: { type: "log", label: measure === "ms" ? "ms a step" : "peak MiB", grid: true, tickFormat: "~s" },
        color: { domain: [...modes], range: ["#27c", "#c33"] },
        marks: [
          Plot.lineY(data, { x: "value", y: measure, stroke: "mode" }),
          Plot.dot(data, { x: "value", y: measure, fill: "mode" }),
          Plot.text(data, Plot.selectLast({ x: "value", y: measure, z: "mode", text: "mode", fill: "mode", dy: -10, textAnchor: "end" })),
        ],
      });
      for (const [key, value] of Object.entries({ x: column * width, y: row * height, xmlns: "http://www.w3.org/2000/svg" }))
        chart.setAttribute(key, String(value));
      return chart.outerHTML;
    }),
  );
  const [right, bottom] = [4 * width, 2 * height];
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${right}" height="${bottom}" viewBox="0 0 ${right} ${bottom}">${charts.join("")}</svg>\n`;
}
