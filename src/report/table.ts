export interface Column {
  /** Head of the column, with the unit. */
  readonly title: string;
  /** Numbers stand to the right. Defaults to left. */
  readonly align?: "left" | "right";
  /** Marks the best row of a column of numbers with a star. */
  readonly best?: "least" | "most";
}

/** A cell: its text, and its number where one is compared. */
export type Cell = string | { readonly text: string; readonly value: number };

export const cellText = (cell: Cell): string => (typeof cell === "string" ? cell : cell.text);

/** The text of the best cell of a column; cells that read the same are as good. */
export function bestText(rows: readonly (readonly Cell[])[], column: number, best: Column["best"]): string | undefined {
  const cells = rows.flatMap((row) => (typeof row[column] === "object" && !Number.isNaN(row[column].value) ? [row[column]] : []));
  if (!best || cells.length < 2) return undefined;
  return cells.reduce((first, cell) => ((best === "least" ? cell.value < first.value : cell.value > first.value) ? cell : first)).text;
}

/**
 * Rows under their heads, in plain text; numbers right-aligned, the best of a column marked with a star. A table ends
 * without a newline.
 *
 * @example
 * table([{ title: "model" }, { title: "loss", align: "right", best: "least" }], [["base", { text: "4.90", value: 4.9 }], ["tuned", { text: "2.82", value: 2.82 }]]);
 */
export function table(columns: readonly Column[], rows: readonly (readonly Cell[])[]): string {
  const winners = columns.map(({ best }, c) => bestText(rows, c, best));
  const mark = (cell: string, c: number): string => (columns[c]!.best === undefined ? cell : cell + (cell === winners[c] ? "*" : " "));
  const shown = rows.map((row) => columns.map((_, c) => mark(cellText(row[c] ?? ""), c)));
  const heads = columns.map(({ title, best }) => title + (best === undefined ? "" : " "));
  const widths = heads.map((head, c) => Math.max(head.length, ...shown.map((row) => row[c]!.length)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, c) => (columns[c]!.align === "right" ? cell.padStart(widths[c]!) : cell.padEnd(widths[c]!)))
      .join("  ")
      .trimEnd();
  return [line(heads), widths.map((width) => "─".repeat(width)).join("  "), ...shown.map(line)].join("\n");
}

const inMarkdown = (text: string): string => text.replace(/[|\\]/g, "\\$&").replace(/[<&]/g, (c) => (c === "<" ? "&lt;" : "&amp;"));

/**
 * The same rows as a table of Markdown, the best of a column in bold.
 *
 * @example
 * markdownTable([{ title: "model" }, { title: "loss", align: "right" }], [["base", "4.90"]]);
 */
export function markdownTable(columns: readonly Column[], rows: readonly (readonly Cell[])[]): string {
  const winners = columns.map(({ best }, c) => bestText(rows, c, best));
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  const shown = (row: readonly Cell[]): string[] =>
    columns.map((_, c) => {
      const text = inMarkdown(cellText(row[c] ?? ""));
      return text !== "" && winners[c] !== undefined && cellText(row[c]!) === winners[c] ? `**${text}**` : text;
    });
  return [
    line(columns.map(({ title }) => inMarkdown(title))),
    line(columns.map(({ align }) => (align === "right" ? "--:" : "---"))),
    ...rows.map((row) => line(shown(row))),
  ].join("\n");
}

/** Names and values, one a line, values in one column. */
export function facts(pairs: readonly (readonly [string, string | undefined])[]): string {
  const known = pairs.filter((pair): pair is readonly [string, string] => pair[1] !== undefined);
  const width = Math.max(...known.map(([name]) => name.length));
  return known.map(([name, value]) => `${name.padEnd(width)}  ${value.split("\n").join(`\n${" ".repeat(width + 2)}`)}`).join("\n");
}
