import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { isReplay, needsGradient, noGrad, record } from "../tape.ts";
import { empty, ones, sizeOf, type Tensor } from "../tensor.ts";
import { add, affine, mul, rsqrt } from "./elementwise.ts";
import { layerNorm } from "./nn.ts";
import { contiguous, reshape } from "./shape.ts";

/** The running statistics of a batch norm, each [channels]; training writes them in place. */
export interface RunningStatistics {
  readonly mean: Tensor;
  readonly variance: Tensor;
}

export interface BatchNormOptions {
  /** Normalise by this batch and move the running statistics; else by the running statistics. Defaults to false. */
  training?: boolean;
  /** Share of the new batch in the running statistics; defaults to 0.1. */
  momentum?: number;
  /** Defaults to 1e-5. */
  eps?: number;
}

/**
 * (x − mean)/√(variance + eps)·weight + bias for each channel of x [batch, channels, …]. In training mean and (biased) variance
 * are those of the batch, and running ← (1 − momentum)·running + momentum·batch, with the unbiased variance, as in torch.
 *
 * @example
 * const running = { mean: zeros([3]), variance: ones([3]) };
 * const y = batchNorm(ones([2, 3, 4, 4]), running, ones([3]), zeros([3]), { training: true });
 */
export function batchNorm(
  x: Tensor,
  running: RunningStatistics,
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  { training = false, momentum = 0.1, eps = 1e-5 }: BatchNormOptions = {},
): Tensor {
  const [batch, channels] = x.shape as [number, number];
  const inner = sizeOf(x.shape.slice(2));
  for (const leaf of [running.mean, running.variance, weight, bias])
    if (x.shape.length < 2 || (leaf && String(leaf.shape) !== String([channels])))
      throw new StrutError("shape", `batchNorm: x must be [batch, channels, …] and the rest [channels]; got [${x.shape}] and [${leaf?.shape}]`);
  const count = batch * inner;
  if (training && count < 2) throw new StrutError("shape", `batchNorm: training needs more than one value a channel, x is [${x.shape}]`);
  const source = contiguous(x);
  let { mean, variance } = running;
  if (training) {
    [mean, variance] = [empty([channels], x.dtype), empty([channels], x.dtype)];
    kernels().channel_moments(mean, variance, source, batch, channels, inner);
    if (!isReplay()) {
      kernels().axpby(running.mean, momentum, mean, 1 - momentum, channels);
      kernels().axpby(running.variance, (momentum * count) / (count - 1), variance, 1 - momentum, channels);
    }
  }
  const rstd = noGrad(() => rsqrt(affine(variance, 1, eps)));
  // what backward reads must not move with the running statistics
  const centre = training ? mean : noGrad(() => affine(mean, 1, 0));
  const out = empty(x.shape, x.dtype);
  kernels().channel_norm(out, source, centre, rstd, weight, bias, batch, channels, inner);
  const backward = (g: Tensor): (Tensor | null)[] => {
    const dx = empty(x.shape, x.dtype);
    const dw = weight && needsGradient(weight) ? empty([channels], x.dtype) : null;
    const db = bias && needsGradient(bias) ? empty([channels], x.dtype) : null;
    kernels().channel_norm_backward(dx, dw, db, contiguous(g), source, centre, rstd, weight, batch, channels, inner, training ? 1 : 0);
    return [dx, ...(weight ? [dw] : []), ...(bias ? [db] : [])];
  };
  return record(out, [source, ...(weight ? [weight] : []), ...(bias ? [bias] : [])], backward, [rstd, centre]);
}

/**
 * (x − mean)/√(variance + eps)·weight + bias for x [batch, channels, …], with mean and variance over each of `groups` blocks of
 * channels of each image. Wu and He 2018, arXiv:1803.08494.
 *
 * @example
 * const y = groupNorm(ones([2, 6, 4, 4]), 3, ones([6]), zeros([6]));
 */
export function groupNorm(x: Tensor, groups: number, weight: Tensor | null = null, bias: Tensor | null = null, eps = 1e-5): Tensor {
  const [batch, channels] = x.shape as [number, number];
  if (x.shape.length < 2 || !Number.isInteger(channels / groups))
    throw new StrutError("shape", `groupNorm: ${groups} groups do not divide the channels of [${x.shape}]`);
  const size = sizeOf(x.shape.slice(1)) / groups;
  const normal = reshape(layerNorm(reshape(x, [batch * groups, size]), ones([size], x.dtype), null, eps), x.shape);
  const along = (leaf: Tensor): Tensor => reshape(leaf, [channels, ...x.shape.slice(2).map(() => 1)]);
  const scaled = weight ? mul(normal, along(weight)) : normal;
  return bias ? add(scaled, along(bias)) : scaled;
}
