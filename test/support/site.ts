import type { Adapter } from "../../src/adapters/index.ts";
import type { Model } from "../../src/models/index.ts";
import { randomModel } from "../../src/models/index.ts";
import type { Live, Site } from "../../src/nn/contracts.ts";
import { dense } from "../../src/operators/index.ts";
import { Parameter, Rng, tensor, type Tensor } from "../../src/tensor/index.ts";
import { sample } from "./gradients.ts";
import { throughDisk } from "./through-disk.ts";

/** A linear site on its own, with a weight [out, in]. */
export const linearSite = (weight: Tensor, path = "model.layers.0.self_attn.o_proj"): Site => ({
  path,
  depth: 0,
  role: path.split(".").at(-1)!,
  kind: "linear",
  out: weight.shape[0]!,
  in: weight.shape[1]!,
  weight: dense(weight),
});

/** A ResNet of two stages with random weights. */
export const tinyResnet = (): Model =>
  randomModel(
    { architectures: ["ResNet"], model_type: "resnet-cifar", blocks_per_stage: [1, 1], widths: [8, 12], num_labels: 5, num_channels: 3 },
    (name, shape) => new Rng(4).fork(name).normal(shape, 0.3, "f64"),
    { dtype: "f64" },
  );

/** The model's adapter after saving and loading onto the base, and the names of the tensors that were in the file. */
export async function reloaded(base: Model, model: Model, method: unknown): Promise<{ model: Model; names: string[] }> {
  const { loaded, shapes } = await throughDisk(model, base, [method as Adapter]);
  return { model: loaded, names: [...shapes.keys()] };
}

/** A site with sampled weights in f64, outside of any model; of a convolution on images of `in` / (kh·kw) channels. */
export function siteOf(out: number, inner: number, { path = "model.layers.0.self_attn.q_proj", bias = false, kernel }: SiteTraits = {}): Site {
  return {
    path,
    depth: 0,
    role: path.split(".").at(-1)!,
    kind: kernel ? "conv2d" : "linear",
    out,
    in: inner,
    weight: dense(tensor(sample([out, inner], 77), [out, inner], "f64")),
    ...(bias ? { bias: new Parameter(tensor(sample([out], 78), [out], "f64"), `${path}.bias`) } : {}),
    ...(kernel ? { conv: { kernel, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 } as const } : {}),
  };
}

interface SiteTraits {
  readonly path?: string;
  readonly bias?: boolean;
  readonly kernel?: readonly [number, number];
}

export const liveOf = (training: boolean, seed = 1): Live => ({ training, step: 0, rng: new Rng(seed), values: {} });

export const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
