import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import { parseConfig } from "./config.ts";
import type { Architecture, CoupledGroup, Dimensions, LayerSpec, Model } from "./model.ts";

/** The keys of config.json by which LoRAM says how a model was cut: blocks [start, end), and the share of each that is gone. */
const names = { neurons: "mlp", heads: "attn" } as const;
const kinds = ["neurons", "heads"] as const;
const interval = z.tuple([z.int().nonnegative(), z.int().nonnegative()]).optional();
const ratio = z.number().min(0).lt(1).default(0);
const schema = z.object({ pruned_mlp_interval: interval, pruned_mlp_ratio: ratio, pruned_attn_interval: interval, pruned_attn_ratio: ratio });

/** How many units stay: the share that goes is rounded up for neurons, down for heads. */
export const unitsLeft = (kind: CoupledGroup["kind"], units: number, share: number): number =>
  // a share may come from a division
  units - (kind === "neurons" ? Math.ceil(share * units - 1e-9) : Math.floor(share * units + 1e-9));

/** The coupled groups of an architecture, each with the units that config.json leaves it. */
export function coupledGroups({ architecture, dimensions, config }: Pick<Model, "architecture" | "dimensions" | "config">): CoupledGroup[] {
  const groups = architecture.coupled?.(dimensions) ?? [];
  const c = parseConfig(schema, config, architecture.modelType);
  return groups.map((group) => {
    const [start, end] = c[`pruned_${names[group.kind]}_interval`] ?? [0, 0];
    const inside = group.depth >= start && group.depth < end;
    return inside ? { ...group, units: unitsLeft(group.kind, group.units, c[`pruned_${names[group.kind]}_ratio`]) } : group;
  });
}

/** The modules of a model as its config.json has them: those of the architecture, cut where it says so. */
export function layersOf(architecture: Architecture, dimensions: Dimensions, config: Config): LayerSpec[] {
  const specs = architecture.layers(dimensions);
  if (!isPruned(config)) return specs;
  if (!architecture.coupled)
    throw new StrutError("config", `config.json says that this ${architecture.modelType} model is pruned, which strut does not know of such models`);
  const extents = new Map(
    coupledGroups({ architecture, dimensions, config }).flatMap(({ units, members }) =>
      members.map(({ path, side, size, roles }): [string, { axis: number; extent: number }] => [
        path,
        { axis: side === "out" ? 0 : 1, extent: units * size * roles.length },
      ]),
    ),
  );
  return specs.map((spec) => {
    const found = extents.get(spec.path);
    return found ? { ...spec, shape: spec.shape.map((n, axis) => (axis === found.axis ? found.extent : n)) } : spec;
  });
}

/** Whether a config.json says that blocks were cut. */
export const isPruned = (config: Config): boolean => kinds.some((kind) => config[`pruned_${names[kind]}_interval`] !== undefined);

/** config.json for a model whose groups have these units left; one interval and one share of each kind is all that it can say. */
export function withPruned(model: Pick<Model, "architecture" | "dimensions" | "config">, left: readonly CoupledGroup[]): Config {
  const config = { ...model.config };
  for (const kind of kinds) {
    const units = model.architecture.coupled!(model.dimensions).find((group) => group.kind === kind)?.units ?? 0;
    const cut = left.filter((group) => group.kind === kind && group.units < units);
    const keys = [`pruned_${names[kind]}_interval`, `pruned_${names[kind]}_ratio`] as const;
    for (const key of keys) delete config[key];
    const [first, last] = [cut[0], cut.at(-1)];
    if (!first || !last) continue;
    if (last.depth - first.depth !== cut.length - 1 || cut.some(({ units }) => units !== first.units))
      throw new StrutError("model", `the blocks keep different numbers of ${kind}, which config.json cannot say`, {
        path: keys[1],
        hint: "Cut the same number in blocks that follow each other.",
      });
    Object.assign(config, { [keys[0]]: [first.depth, last.depth + 1], [keys[1]]: (units - first.units) / units });
  }
  return config;
}
