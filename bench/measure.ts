import { readFileSync, writeFileSync } from "node:fs";
import { engine } from "strut/tensor";

export interface Options {
  threads: number;
  runs?: number | undefined;
  warmup?: number | undefined;
  json: boolean;
  check: boolean;
  updateInBackward: boolean;
}

/** One line of results, with the fields of the PyTorch peer. */
export interface Row {
  name: string;
  shape: string;
  threads: number;
  median_s: number;
  min_s: number;
  runs: number;
  peak_rss_mib: number;
  extra: Record<string, unknown>;
}

export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
};

/** Forgets the peak of the resident set, where the kernel allows it. */
export function resetPeak(): void {
  try {
    writeFileSync("/proc/self/clear_refs", "5");
  } catch {
    // no such file outside Linux: the peak is then that of the whole process
  }
}

/** Peak of the resident set in MiB. */
export function peakRss(): number {
  try {
    return Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))![1]) / 1024;
  } catch {
    return process.resourceUsage().maxRSS / 1024;
  }
}

/** Prints one measurement: JSON on standard output, and unless `json`, a readable line on standard error. */
export function report(options: Options, row: Omit<Row, "threads" | "peak_rss_mib">): void {
  const full: Row = { ...row, threads: engine().backend.threads, peak_rss_mib: Math.round(peakRss() * 10) / 10 };
  console.log(JSON.stringify(full));
  if (!options.json) console.error(`${full.name.padEnd(18)} ${full.shape.padEnd(34)} ${full.median_s.toFixed(6)} s  ${JSON.stringify(full.extra)}`);
}

/** Times `body`, which runs `inner` times a measurement. */
export async function bench(
  options: Options,
  name: string,
  shape: string,
  body: () => unknown,
  defaults: { runs?: number; warmup?: number; inner?: number; extra?: (median: number, fastest: number) => Record<string, unknown> } = {},
): Promise<void> {
  const { inner = 1, extra = () => ({}) } = defaults;
  const [runs, warmup] = [options.runs ?? defaults.runs ?? 5, options.warmup ?? defaults.warmup ?? 1];
  resetPeak();
  const times: number[] = [];
  for (let i = 0; i < warmup + runs; i++) {
    const start = performance.now();
    for (let n = 0; n < inner; n++) await body();
    if (i >= warmup) times.push((performance.now() - start) / 1000 / inner);
  }
  const middle = median(times);
  const fastest = Math.min(...times);
  report(options, { name, shape, median_s: middle, min_s: fastest, runs, extra: extra(middle, fastest) });
}
