export interface ErrorDetails {
  /** File, tensor or option the error is about. */
  path?: string;
  /** What to do about it: one sentence. */
  hint?: string;
  cause?: unknown;
}

/**
 * The one error type of strut. The message says what was expected and what was found; `hint` says what to do.
 *
 * @example
 * try { new StrutError("rank", "rank 0 is not possible here", { hint: "Use a rank of at least 1." }); } catch {}
 */
export class StrutError extends Error {
  readonly code: string;
  readonly path: string | undefined;
  readonly hint: string | undefined;
  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "StrutError";
    this.code = code;
    this.path = details.path;
    this.hint = details.hint;
  }
}

/** Levenshtein distance, for "did you mean". */
function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) row.push(Math.min(previous[j]! + 1, row[j - 1]! + 1, previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    previous = row;
  }
  return previous[b.length]!;
}

/** The candidates closest to `name`, nearest first; names further away than half of their length are left out. */
export function nearest(name: string, candidates: Iterable<string>, most = 3): string[] {
  return [...new Set(candidates)]
    .map((candidate) => ({ candidate, distance: editDistance(name.toLowerCase(), candidate.toLowerCase()) }))
    .filter(({ candidate, distance }) => distance <= Math.max(2, Math.ceil(candidate.length / 2)))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, most)
    .map(({ candidate }) => candidate);
}
