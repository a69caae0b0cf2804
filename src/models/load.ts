import { StrutError } from "../errors.ts";
import { readConfig, type Config } from "../formats/huggingface.ts";
import { openWeights, type WeightFolder } from "../formats/safetensors-folder.ts";
import { full, noGrad, Parameter, scope, type Real, type Tensor } from "../tensor/index.ts";
import { gpt2 } from "./gpt2.ts";
import { llama } from "./llama.ts";
import { makeLayer, makeModel, type Architecture, type Buffers, type Layer, type LayerSpec, type Model } from "./model.ts";
import { layersOf } from "./pruned-config.ts";
import { resnet } from "./resnet.ts";
import { readFloats } from "./stored.ts";
import { useLite } from "./use-lite.ts";

const architectures: readonly Architecture[] = [llama, gpt2, useLite, resnet];

/** The architecture for a config.json, by its `model_type`. */
export function architectureOf(config: Config): Architecture {
  const found = architectures.find(({ modelType }) => modelType === config["model_type"]);
  if (found) return found;
  throw new StrutError(
    "config",
    `config.json has model_type ${JSON.stringify(config["model_type"])}; strut knows ${architectures.map(({ modelType }) => modelType).join(", ")}`,
    { path: "model_type" },
  );
}

/** Where each weight of the architecture stands in the file; throws a diff unless names and shapes agree. */
function locate(architecture: Architecture, specs: readonly LayerSpec[], weights: WeightFolder): (name: string) => string {
  const prefix = architecture.prefix ?? "";
  const bare = prefix !== "" && ![...weights.entries.keys()].some((name) => name.startsWith(prefix));
  const inFile = (name: string): string => (bare && name.startsWith(prefix) ? name.slice(prefix.length) : name);
  const expected = new Map<string, readonly number[]>();
  const optional = new Set<string>();
  for (const spec of specs) {
    const shape = spec.transposed ? [...spec.shape].reverse() : spec.shape;
    expected.set(inFile(`${spec.path}.weight`), shape);
    if (spec.bias) expected.set(inFile(`${spec.path}.bias`), [spec.shape[0]!]);
    for (const name of Object.keys(spec.buffers ?? {})) expected.set(inFile(`${spec.path}.${name}`), [spec.shape[0]!]);
    if (spec.tiedTo) optional.add(inFile(`${spec.path}.weight`));
  }
  const missing = [...expected.keys()].filter((name) => !weights.entries.has(name) && !optional.has(name));
  const unexpected = [...weights.entries.keys()].filter((name) => !expected.has(name) && !architecture.ignored?.test(name));
  const wrong = [...expected].filter(([name, shape]) => weights.entries.has(name) && String(weights.entries.get(name)!.shape) !== String(shape));
  if (missing.length + unexpected.length + wrong.length === 0) return inFile;
  const list = (title: string, names: readonly string[]): string =>
    names.length === 0 ? "" : `\n  ${title} (${names.length}): ${names.slice(0, 6).join(", ")}${names.length > 6 ? ", …" : ""}`;
  throw new StrutError(
    "weights",
    `the weights in ${weights.path} do not fit config.json:${list("missing", missing)}${list("unexpected", unexpected)}${list(
      "wrong shape",
      wrong.map(([name, shape]) => `${name} is [${weights.entries.get(name)!.shape}], expected [${shape}]`),
    )}`,
    { path: weights.path, hint: "Config and weights must come from the same model." },
  );
}

/**
 * Loads a model from a Hugging Face folder: config.json and safetensors, whole or sharded. Strict about weights:
 * a missing, unexpected or mis-shaped one is an error that lists them.
 *
 * @example
 * await start();
 * const model = await loadModel("data/lm/stories260K");
 */
export async function loadModel(folder: string, { dtype = "f32" }: { dtype?: Real } = {}): Promise<Model> {
  const config = await readConfig(folder);
  const architecture = architectureOf(config);
  const dimensions = architecture.parse(config);
  const specs = layersOf(architecture, dimensions, config);
  const weights = await openWeights(folder);
  try {
    const inFile = locate(architecture, specs, weights);
    const layers = new Map<string, Layer>();
    const leaf = async (name: string): Promise<Parameter> => new Parameter(await readFloats(weights, inFile(name), dtype, folder), name, false);
    for (const spec of specs) {
      const weight = spec.tiedTo ? layers.get(spec.tiedTo)!.weight : await leaf(`${spec.path}.weight`);
      const bias = spec.bias ? await leaf(`${spec.path}.bias`) : undefined;
      const buffers: Record<string, Parameter> = {};
      for (const name of Object.keys(spec.buffers ?? {})) buffers[name] = await leaf(`${spec.path}.${name}`);
      layers.set(spec.path, makeLayer(spec, weight, bias, spec.buffers && buffers));
    }
    return makeModel({ architecture, config, dimensions, layers, folder });
  } finally {
    await weights.close();
  }
}

/** A model of a config.json whose matrices are drawn anew by `draw`; norms are 1 and biases 0. */
export function randomModel(config: Config, draw: (name: string, shape: readonly number[]) => Tensor, { dtype = "f32" }: { dtype?: Real } = {}): Model {
  const architecture = architectureOf(config);
  const dimensions = architecture.parse(config);
  const layers = new Map<string, Layer>();
  noGrad(() => {
    for (const spec of layersOf(architecture, dimensions, config)) {
      const shape = spec.transposed ? [...spec.shape].reverse() : spec.shape;
      const make = (name: string, of: readonly number[], constant?: number): Parameter =>
        new Parameter(
          scope(() => (constant === undefined ? draw(name, of) : full(of, constant, dtype))),
          name,
          false,
        );
      const weight = spec.tiedTo ? layers.get(spec.tiedTo)!.weight : make(`${spec.path}.weight`, shape, spec.kind === "norm" ? 1 : undefined);
      const vector = (name: string, constant: number): Parameter => make(`${spec.path}.${name}`, [spec.shape[0]!], constant);
      const buffers: Buffers | undefined =
        spec.buffers && Object.fromEntries(Object.entries(spec.buffers).map(([name, constant]) => [name, vector(name, constant)]));
      layers.set(spec.path, makeLayer(spec, weight, spec.bias ? vector("bias", 0) : undefined, buffers));
    }
  });
  return makeModel({ architecture, config, dimensions, layers });
}
