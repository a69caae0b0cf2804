import { escaped } from "../report/html.ts";
import { bytesText, grouped, significant } from "../report/numbers.ts";
import { paretoPlot } from "../report/pareto.ts";
import { bestText, cellText, markdownTable, table, type Cell, type Column } from "../report/table.ts";
import type { Comparison } from "./compare.ts";
import type { Row } from "./rows.ts";

const columns: readonly Column[] = [
  { title: "method" },
  { title: "size" },
  { title: "rate", align: "right" },
  { title: "held-out loss (nats)", align: "right", best: "least" },
  { title: "parameters", align: "right" },
  { title: "on disk", align: "right" },
  { title: "optimiser", align: "right" },
  { title: "tensors", align: "right", best: "least" },
  { title: "process", align: "right", best: "least" },
  { title: "ms a step", align: "right", best: "least" },
  { title: "merges" },
];

const known = <T>(value: T | undefined, show: (value: T) => Cell): Cell => (value === undefined ? "–" : show(value));
const bytesCell = (bytes: number): Cell => ({ text: bytesText(bytes), value: bytes });

const lossText = ({ mean, spread }: NonNullable<Row["loss"]>): string => `${mean.toFixed(4)}${spread === undefined ? "" : ` ± ${spread.toFixed(4)}`}`;

/** A rate, with an arrow where the search ended at it and a better one may lie beyond. */
const rateText = (rate: number, rates: readonly number[]): string =>
  `${significant(rate)}${rates.length < 2 ? "" : rate === Math.max(...rates) ? " ↑" : rate === Math.min(...rates) ? " ↓" : ""}`;

const cellsOf = (row: Row, rates: readonly number[]): Cell[] => [
  row.label,
  row.loss === undefined ? "–" : row.size ? `${row.size.name} = ${row.size.value}` : "fixed",
  known(row.rate, (rate) => rateText(rate, rates)),
  known(row.loss, (loss) => ({ text: lossText(loss), value: loss.mean })),
  known(row.parameters, grouped),
  known(row.bytes, bytesText),
  known(row.optimizerBytes, bytesText),
  known(row.tensorBytes, bytesCell),
  known(row.peakBytes, bytesCell),
  known(row.secondsPerStep, (seconds) => ({ text: (1000 * seconds).toFixed(1), value: seconds })),
  known(row.mergeable, (mergeable) => (mergeable ? "yes" : "no")),
];

/** Columns and rows of the table, with a column of notes where a row has one. */
function contents({ base, rows, rates }: Comparison): { columns: readonly Column[]; rows: Cell[][] } {
  const noted = rows.some(({ note }) => note !== undefined);
  const baseCells = ["the base model", "", "", base.loss.toFixed(4), grouped(base.parameters), bytesText(base.bytes), "", "", "", "", ""];
  return {
    columns: noted ? [...columns, { title: "note" }] : columns,
    rows: [[...baseCells, ...(noted ? [""] : [])], ...rows.map((row) => [...cellsOf(row, rates), ...(noted ? [row.note ?? ""] : [])])],
  };
}

/** What was compared, in sentences. */
function words({ setup: { recipe, budget, backend, version }, seeds, rates, base }: Comparison): string[] {
  const { data, training, targets } = recipe;
  const share = `${significant(50 * data.heldOut, 3)} %`;
  return [
    `Model ${recipe.model}, text ${data.text}: the last ${share} are measured (${grouped(base.tokens)} tokens), the ${share} before choose the learning rate, the rest trains.`,
    `Budget: ${grouped(budget.limit)} ${budget.of === "bytes" ? "bytes in the saved adapter" : "trainable parameters"}, on ${targets === undefined ? "the default modules" : [targets].flat().join(", ")}; the size of each method is the largest that fits.`,
    `Each method: ${training.steps ?? 0} steps of ${training.batchSize} × ${data.window ?? 0} tokens; rates ${rates.join(", ")} from ${seeds === 1 ? "one seed" : `the first of ${seeds} seeds, then all seeds at the best; mean ± standard deviation`}.${rates.length < 2 ? "" : " An arrow marks a best rate that is the highest or lowest tried."}`,
    `"tensors" and "process" are the most memory until the end of training, of all tensors and of the whole process, Node included. One thread a process; strut ${version}, ${backend}.`,
  ];
}

/** The table as text. */
export function textReport(comparison: Comparison, command: string): string {
  const { columns: heads, rows } = contents(comparison);
  return `${table(heads, rows)}\n\n${words(comparison).join("\n")}\nAgain: ${command}`;
}

export function markdownReport(comparison: Comparison, command: string): string {
  const { columns: heads, rows } = contents(comparison);
  return `${markdownTable(heads, rows)}\n\n${words(comparison).join("\n")}\n\n\`\`\`sh\n${command}\n\`\`\`\n`;
}

/** Loss by what is stored, as SVG; empty where no method came to its end. */
export function plotOf({ setup: { budget }, rows }: Comparison): string {
  const points = rows.flatMap(({ label, loss, parameters, bytes }) => {
    const x = budget.of === "bytes" ? bytes : parameters;
    return loss && x ? [{ label, x, y: loss.mean, ...(loss.spread === undefined ? {} : { spread: loss.spread }) }] : [];
  });
  const xTitle = budget.of === "bytes" ? "bytes on disk" : "trainable parameters";
  return paretoPlot({ title: `Held-out loss by ${xTitle}`, xTitle, yTitle: "held-out loss (nats)", points, limit: budget.limit });
}

const style = `:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}caption{text-align:left;font-weight:600;padding:.5rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}td:nth-child(12){white-space:normal;min-width:14rem}.number{text-align:right}tbody th{font-weight:500}
.best{font-weight:700}.best::after{content:" ★";font-size:.7em}svg{max-width:100%;height:auto}code{overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#16181b}th,td{border-color:#3a3e43}}`;

function figure(comparison: Comparison): string {
  const plot = plotOf(comparison);
  if (plot === "") return "";
  return `<figure>\n${plot}<figcaption>Nothing to the left of a marked method is better. Bars are a standard deviation over seeds.</figcaption>\n</figure>\n`;
}

/** One page with everything in it. */
export function htmlReport(comparison: Comparison, command: string): string {
  const { columns: heads, rows } = contents(comparison);
  const winners = heads.map(({ best }, c) => bestText(rows, c, best));
  const kind = (c: number, best = false): string => {
    const names = [...(heads[c]!.align === "right" ? ["number"] : []), ...(best ? ["best"] : [])];
    return names.length > 0 ? ` class="${names.join(" ")}"` : "";
  };
  const cell = (content: Cell, c: number): string => {
    const text = cellText(content);
    return c === 0 ? `<th scope="row">${escaped(text)}</th>` : `<td${kind(c, text !== "" && text === winners[c])}>${escaped(text)}</td>`;
  };
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>strut compare</title>
<style>
${style}
</style>
</head>
<body>
<main>
<h1>Methods under one budget</h1>
${words(comparison)
  .map((sentence) => `<p>${escaped(sentence)}</p>`)
  .join("\n")}
<div class="wide" tabindex="0" role="region" aria-label="Results">
<table>
<caption>Results, best first; ★ marks the best of a column</caption>
<thead><tr>${heads.map(({ title }, c) => `<th scope="col"${kind(c)}>${escaped(title)}</th>`).join("")}</tr></thead>
<tbody>
${rows.map((row) => `<tr>${row.map(cell).join("")}</tr>`).join("\n")}
</tbody>
</table>
</div>
${figure(comparison)}<p>Again: <code>${escaped(command)}</code></p>
</main>
</body>
</html>
`;
}
