import type { Done, Measured } from "./job.ts";
import type { Plan, Refused } from "./plan.ts";
import type { Budget } from "./setup.ts";

/** What all runs of one method came to. Where nothing came of them, only the first four and the note are there. */
export interface Row {
  readonly label: string;
  readonly id: string;
  readonly title: string;
  readonly paper: string;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly size?: { readonly name: string; readonly value: number };
  /** The rate that was best on the half that chooses, and what each rate came to there. */
  readonly rate?: number;
  readonly search?: readonly { readonly rate: number; readonly validation: number | null }[];
  /** Held-out loss: mean and standard deviation over seeds, the latter undefined for a single one; and each seed's. */
  readonly loss?: { readonly mean: number; readonly spread?: number; readonly seeds: readonly number[] };
  readonly parameters?: number;
  readonly bytes?: number;
  readonly optimizerBytes?: number;
  readonly peakBytes?: number;
  readonly tensorBytes?: number;
  readonly secondsPerStep?: number;
  readonly mergeable?: boolean;
  readonly note?: string;
}

/** Mean and sample standard deviation. */
function spreadOf(values: readonly number[]): { mean: number; spread?: number } {
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  if (values.length < 2) return { mean };
  return { mean, spread: Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (values.length - 1)) };
}

const measuredOf = (done: Done): Measured | undefined => ("measured" in done ? done.measured : undefined);

/** The rate with the least validation loss; undefined where every run failed. */
export const bestRate = (search: readonly Done[]): number | undefined =>
  search.flatMap((done) => ("measured" in done ? [done] : [])).sort((a, b) => a.measured.validation - b.measured.validation)[0]?.job.method!.rate;

const about = ({ label, id, title, paper }: Plan | Refused) => ({ label, id, title, paper });

/** A method's row: search are its runs from the first seed, one a rate, and rest those from the other seeds at the best rate. */
export function rowOf(plan: Plan | Refused, budget: Budget, search: readonly Done[] = [], rest: readonly Done[] = []): Row {
  if ("refused" in plan) return { ...about(plan), note: plan.refused };
  const rate = bestRate(search);
  const failures = (dones: readonly Done[]): string[] => dones.flatMap((done) => ("failed" in done ? [`seed ${done.job.seed}: ${done.failed}`] : []));
  if (rate === undefined)
    return { ...about(plan), options: plan.options, note: search.map((done) => ("failed" in done ? done.failed : "")).find((text) => text) ?? "it never ran" };
  const runs = [...search.filter(({ job }) => job.method!.rate === rate), ...rest].flatMap((done) => measuredOf(done) ?? []);
  const most = (key: "peakBytes" | "tensorBytes" | "bytes" | "optimizerBytes"): number => Math.max(...runs.map((run) => run[key]));
  const grew = plan.stored <= budget.limit && Math.max(...runs.map((run) => run[budget.of])) > budget.limit;
  const notes = [...(plan.note ? [plan.note] : []), ...(grew ? ["grew above the budget in training"] : []), ...failures(rest)];
  return {
    ...about(plan),
    options: plan.options,
    ...(plan.size ? { size: plan.size } : {}),
    rate,
    search: search.map((done) => ({ rate: done.job.method!.rate, validation: measuredOf(done)?.validation ?? null })),
    loss: { ...spreadOf(runs.map((run) => run.loss)), seeds: runs.map((run) => run.loss) },
    parameters: runs[0]!.parameters,
    bytes: most("bytes"),
    optimizerBytes: most("optimizerBytes"),
    peakBytes: most("peakBytes"),
    tensorBytes: most("tensorBytes"),
    secondsPerStep: Math.min(...runs.map((run) => run.secondsPerStep)),
    mergeable: runs.every((run) => run.mergeable),
    ...(notes.length > 0 ? { note: notes.join("; ") } : {}),
  };
}
