// Draws the losses of a run as an SVG. usage: node scripts/plot-run.mjs out/demo/events.jsonl docs/pictures/demo.svg
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";

const [from, to] = process.argv.slice(2);
if (!from || !to) {
  console.error("usage: node scripts/plot-run.mjs EVENTS.jsonl PICTURE.svg");
  process.exit(2);
}
const events = readFileSync(from, "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line));
const steps = events.filter(({ event }) => event === "step");
const held = events.filter(({ event }) => event === "evaluation");
const { document } = parseHTML("<html><body></body></html>");
const chart = Plot.plot({
  document,
  width: 720,
  height: 320,
  style: { background: "white", color: "#222", fontFamily: "sans-serif" },
  x: { label: "step" },
  y: { label: "cross-entropy (nats a token)", grid: true, nice: true },
  marks: [
    Plot.lineY(steps, { x: "step", y: "loss", stroke: "#9ab", strokeWidth: 1 }),
    Plot.lineY(held, { x: "step", y: "loss", stroke: "#c33", strokeWidth: 2 }),
    Plot.dot(held, { x: "step", y: "loss", fill: "#c33" }),
    Plot.text(held.slice(-1), { x: "step", y: "loss", text: (d) => `held out ${d.loss.toFixed(3)}`, dy: -12, textAnchor: "end", fill: "#c33" }),
  ],
});
chart.setAttribute("xmlns", "http://www.w3.org/2000/svg");
mkdirSync(dirname(to), { recursive: true });
writeFileSync(to, chart.outerHTML);
