/** What a method of a size stores; undefined where it does not take the size. */
export type Stored = (size: number) => Promise<number | undefined>;

export interface Solved {
  readonly size: number;
  readonly stored: number;
  readonly fits: boolean;
}

/**
 * The size that stores most within a limit, the larger of two that store the same; where none fits, the one that stores least.
 * What is stored must rise with the size, or fall with it (RandLoRA's rank), but some sizes may be refused, such as those
 * that do not divide a matrix. Sizes up to `ceiling`, and as far above as none of a doubling row is refused, are considered.
 * Undefined if every size is refused.
 */
export async function solveSize(measure: Stored, limit: number, ceiling: number): Promise<Solved | undefined> {
  const known = new Map<number, number | undefined>();
  const at = async (size: number): Promise<number | undefined> => {
    if (!known.has(size)) known.set(size, await measure(size));
    return known.get(size);
  };
  const fits = (size: number): boolean => (known.get(size) ?? Infinity) <= limit;
  const rungs: number[] = [];
  let end = 1;
  for (; end <= Math.max(limit, ceiling); end *= 2) {
    const stored = await at(end);
    if (stored === undefined && end > ceiling) break;
    if (stored === undefined) continue;
    rungs.push(end);
    const [first, wasFitting] = [known.get(rungs[0]!)!, fits(rungs[0]!)];
    if (fits(end) !== wasFitting) break;
    // it moves away from the limit
    if (stored !== first && stored > first !== wasFitting) break;
  }
  for (let size = 3; size < (rungs[0] ?? ceiling + 1); size++) await at(size);
  if (rungs.length > 1 && fits(rungs.at(-1)!) !== fits(rungs[0]!)) await search(rungs.at(-2)!, rungs.at(-1)!, at, fits);
  else if (rungs.length > 0) await search(rungs.at(-1)!, end, at, fits);
  return best(known, limit);
}

/** Asks for the sizes between two until no size is left at which fitting could end. */
async function search(from: number, to: number, at: Stored, fits: (size: number) => boolean): Promise<void> {
  let [low, high] = [from, to];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    let taken = middle;
    while (taken > low && (await at(taken)) === undefined) taken--;
    if (taken > low && fits(taken) !== fits(from)) high = taken;
    else low = middle; // what lies between is refused, or fits as `from` does
  }
}

function best(known: ReadonlyMap<number, number | undefined>, limit: number): Solved | undefined {
  const all = [...known].flatMap(([size, stored]) => (stored === undefined ? [] : [{ size, stored, fits: stored <= limit }]));
  const fitting = all.filter((one) => one.fits).sort((a, b) => b.stored - a.stored || b.size - a.size);
  return fitting[0] ?? all.sort((a, b) => a.stored - b.stored)[0];
}
