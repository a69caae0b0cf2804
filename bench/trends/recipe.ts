import { run, type Course, type Scaffold, type Trainer } from "./scaffolds/model.ts";

/** The seeds of every experiment. */
export const seeds = [1, 2, 3] as const;

export interface Row {
  readonly label: string;
  readonly parameters: number;
  /** The figure of each seed. */
  readonly values: readonly number[];
}

/** An experiment of a sheet, on our scaffolds and with our numbers. */
export interface Recipe {
  readonly title: string;
  /** What its sheet measured, in the sheet's words; or that it measured nothing. */
  readonly sheet: string;
  /** What came out here that the sheet, or the paper, has otherwise. */
  readonly note?: string;
  readonly better: "lower" | "higher";
  /** Takes less than five seconds: runs in `npm test`. */
  readonly quick?: true;
  rows(): Promise<Row[]>;
  /** Pairs of labels: the first is better than the second, by more than the spread of the seeds. */
  readonly orders: readonly (readonly [string, string])[];
}

export const mean = (values: readonly number[]): number => values.reduce((sum, x) => sum + x, 0) / values.length;

/** Standard deviation over the seeds. */
export const spread = (values: readonly number[]): number =>
  Math.sqrt(values.reduce((sum, x) => sum + (x - mean(values)) ** 2, 0) / Math.max(1, values.length - 1));

/** Orders that do not hold: where the means differ by no more than the larger spread. */
export function broken({ better, orders }: Recipe, rows: readonly Row[]): string[] {
  const row = (label: string): Row => {
    const found = rows.find((one) => one.label === label);
    if (!found) throw new Error(`the recipe has no row ${label}`);
    return found;
  };
  return orders.flatMap(([first, second]) => {
    const [a, b] = [row(first).values, row(second).values];
    const gap = (better === "lower" ? 1 : -1) * (mean(b) - mean(a));
    const noise = Math.max(spread(a), spread(b));
    return gap > noise ? [] : [`${first} (${mean(a).toFixed(4)}) is not better than ${second} (${mean(b).toFixed(4)}) beyond the spread ${noise.toFixed(4)}`];
  });
}

/** One row: a method with options on a scaffold, over all seeds; the best of the learning rates, if there are several. */
export async function row(
  label: string,
  scaffold: Scaffold,
  method: Trainer,
  options: Readonly<Record<string, unknown>>,
  course: Omit<Course, "learningRate"> & { readonly learningRate: number | readonly number[] },
  better: Recipe["better"] = "lower",
): Promise<Row> {
  const rates = typeof course.learningRate === "number" ? [course.learningRate] : course.learningRate;
  const tried: Row[] = [];
  for (const learningRate of rates) {
    const results = [];
    for (const seed of seeds) results.push(await run(scaffold, method, options, seed, { ...course, learningRate }));
    tried.push({ label, parameters: results[0]!.parameters, values: results.map(({ figure }) => figure) });
  }
  return tried.reduce((best, one) => ((better === "lower" ? mean(one.values) < mean(best.values) : mean(one.values) > mean(best.values)) ? one : best));
}
