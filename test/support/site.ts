import type { Live, Site } from "../../src/nn/contracts.ts";
import { dense } from "../../src/operators/index.ts";
import { Parameter, Rng, tensor, type Tensor } from "../../src/tensor/index.ts";
import { sample } from "./gradients.ts";

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
