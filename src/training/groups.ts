import { StrutError } from "../errors.ts";
import type { ParameterGroup } from "../nn/contracts.ts";
import { isNamed } from "../optimizers/targets.ts";
import type { Parameter } from "../tensor/index.ts";
import type { NamedGroup, TrainOptions } from "./options.ts";

/**
 * The groups of a run: named ones with their parameters, each of those in the first that matches, and vectors without decay where
 * it is on matrices alone. `taken` are parameters of groups that regimes made.
 */
export function groupsOf(
  { groups = [], decayOn = "all" }: TrainOptions,
  trained: ReadonlyMap<string, Parameter>,
  taken: readonly ParameterGroup[],
): ParameterGroup[] {
  const given = groups.filter((group): group is ParameterGroup => "parameters" in group);
  const used = new Set([...given, ...taken].flatMap(({ parameters }) => parameters));
  const found = groups.map((group): ParameterGroup => ("parameters" in group ? group : { ...group, parameters: claim(group, trained, used) }));
  if (decayOn === "all") return found;
  const split = found.flatMap((group): ParameterGroup[] => {
    if (group.weightDecay !== undefined) return [group];
    const vectors = group.parameters.filter(({ shape }) => shape.length < 2);
    return [
      { ...group, parameters: group.parameters.filter(({ shape }) => shape.length >= 2) },
      { ...group, parameters: vectors, weightDecay: 0 },
    ];
  });
  const rest = [...trained.values()].filter((w) => w.shape.length < 2 && !used.has(w));
  return [...split, { parameters: rest, weightDecay: 0 }].filter(({ parameters }) => parameters.length > 0);
}

function claim({ match }: NamedGroup, trained: ReadonlyMap<string, Parameter>, used: Set<Parameter>): Parameter[] {
  const named = [...trained].filter(([name]) => isNamed([match].flat(), name, "groups"));
  if (named.length === 0)
    throw new StrutError("option", `the parameter group ${JSON.stringify(match)} matches nothing that trains`, {
      path: "groups",
      hint: `Names are such as ${[...trained.keys()].slice(0, 3).join(", ")}.`,
    });
  const own = named.map(([, w]) => w).filter((w) => !used.has(w));
  for (const w of own) used.add(w);
  return own;
}
