import { pythonPattern } from "./peft-regexp.ts";

/** What `rank_pattern` or `alpha_pattern` says about one module. */
export interface PatternValue {
  readonly value: number;
  /** The key that decided, the first in file order that matches; undefined: the default stands. */
  readonly key?: string;
  /** Later keys that match too and say something else: PEFT sorts keys on saving, so they may win next time. */
  readonly rivals: readonly string[];
}

/**
 * Compiles a `rank_pattern` or `alpha_pattern` to a look-up by module path, PEFT's `get_pattern_key`: the first key K
 * for which `(.*\.)?(K)$` matches, else `otherwise`. Dots in K are Python's regex dots.
 *
 * @example
 * patternLookup({ q_proj: 4, ".*layers\\.0\\..*": 2 }, 8, "rank_pattern")("model.layers.0.self_attn.q_proj").value; // 4
 */
export function patternLookup(patterns: Readonly<Record<string, number>>, otherwise: number, what: string): (path: string) => PatternValue {
  const compiled = Object.entries(patterns).map(([key, value]) => ({ key, value, pattern: patternOf(key, what) }));
  return (path) => {
    const [first, ...later] = compiled.filter(({ pattern }) => pattern.match(path));
    if (!first) return { value: otherwise, rivals: [] };
    const rivals = later.filter(({ value }) => value !== first.value).map(({ key }) => key);
    return { value: first.value, key: first.key, rivals };
  };
}

const patternOf = (key: string, what: string) => pythonPattern(`(.*\\.)?(${key})$`, what);

const escapePattern = (text: string): string => text.replace(/[^\w]/g, "\\$&");

/**
 * The smallest `rank_pattern` or `alpha_pattern` that gives every module its value in whatever order the keys come,
 * because PEFT sorts them on saving and then takes the first match. A key is the shortest ending of a path whose modules
 * all have the same value, else the whole path, anchored; so whichever key matches a module, the value is right.
 *
 * @example
 * orderProofPatterns(new Map([["h.0.attn.c_proj", 4], ["h.0.mlp.c_proj", 8]]), 8); // { "attn.c_proj": 4 }
 */
export function orderProofPatterns(perModule: ReadonlyMap<string, number>, otherwise: number): Record<string, number> {
  const values = new Map<string, Set<number>>();
  for (const [path, value] of perModule) for (const ending of endings(path)) values.set(ending, (values.get(ending) ?? new Set()).add(value));

  const patterns = new Map<string, number>();
  for (const [path, value] of perModule) {
    if (value === otherwise) continue;
    const names = endings(path).filter((candidate) => candidate === path || !/^\d/.test(candidate));
    const ending = names.find((candidate) => values.get(candidate)!.size === 1);
    patterns.set(ending === undefined ? `^${escapePattern(path)}$` : unambiguous(ending, perModule), value);
  }
  return Object.fromEntries(patterns);
}

/** The shortest endings of paths that no other path has, as few as they are: what selects these modules and no others. */
export function shortestEndings(paths: readonly string[], others: readonly string[]): string[] {
  const taken = new Set(others.flatMap(endings));
  return [...new Set(paths.map((path) => endings(path).find((ending) => !taken.has(ending)) ?? path))].sort();
}

function endings(path: string): string[] {
  const segments = path.split(".");
  return segments.map((_, i) => segments.slice(-1 - i).join("."));
}

/** The ending as it stands where its dots can only mean dots among these modules, else escaped. */
function unambiguous(ending: string, perModule: ReadonlyMap<string, number>): string {
  if (/[^\w.]/.test(ending)) return escapePattern(ending);
  if (!ending.includes(".")) return ending;
  const pattern = patternOf(ending, "pattern");
  const stray = [...perModule.keys()].some((path) => pattern.match(path) && path !== ending && !path.endsWith(`.${ending}`));
  return stray ? escapePattern(ending) : ending;
}
