import { StrutError } from "../../errors.ts";
import { hostNumbers, hostView, tensor, zeros, type Tensor } from "../tensor.ts";
import { abs, add, affine, exp, log, maximum, minimum, mul, neg, scale, square, sub } from "./elementwise.ts";
import { tokenLosses } from "./nn.ts";
import { max, mean, sum } from "./reduce.ts";
import { reshape } from "./shape.ts";

/** How the losses of the elements become one: their mean (the default), their sum, or not at all. */
export type Reduction = "mean" | "sum" | "none";

export interface LossOptions {
  reduction?: Reduction;
}

const reduced = (losses: Tensor, reduction: Reduction): Tensor => (reduction === "none" ? losses : reduction === "sum" ? sum(losses) : mean(losses));

function alike(name: string, x: Tensor, target: Tensor): void {
  if (String(x.shape) !== String(target.shape) || x.dtype !== target.dtype)
    throw new StrutError("shape", `${name}: x is ${x.dtype}[${x.shape}] and the target ${target.dtype}[${target.shape}]; they must be alike`);
}

/** x − log Σ exp x over the last axis. */
export function logSoftmax(x: Tensor): Tensor {
  const lead = x.shape.slice(0, -1);
  const shifted = sub(x, reshape(max(x, -1).values, [...lead, 1]));
  return sub(shifted, log(sum(exp(shifted), { axes: [-1], keepAxes: true })));
}

export interface CrossEntropyOptions extends LossOptions {
  /** A factor for each class [classes]; the mean then divides by the factors of the targets. It gets no gradient. */
  weight?: Tensor;
  /** Rows with this target are not scored, nor are those with a negative one. */
  ignoreIndex?: number;
  /** Share of the target that is spread over all classes; defaults to 0. */
  labelSmoothing?: number;
}

/**
 * Cross-entropy of logits […, classes] and i32 targets […]; a negative target is not scored. As torch's cross_entropy:
 * −(1 − ε)·w_t·log p_t − ε/K·Σ w_c·log p_c, and the mean divides by the sum of w_t over scored rows.
 *
 * @example
 * const loss = crossEntropy(zeros([2, 3]), tensor([0, 2], [2], "i32"), { labelSmoothing: 0.1 });
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  { reduction = "mean", weight, ignoreIndex, labelSmoothing = 0 }: CrossEntropyOptions = {},
): Tensor {
  const classes = logits.shape.at(-1)!;
  const rows = logits.size / Math.max(1, classes);
  if (!(labelSmoothing >= 0 && labelSmoothing <= 1))
    throw new StrutError("option", `labelSmoothing is ${labelSmoothing}; it must lie in [0, 1]`, { path: "labelSmoothing" });
  if (weight && (weight.size !== classes || weight.dtype !== logits.dtype))
    throw new StrutError("shape", `crossEntropy: the class weights are ${weight.dtype}[${weight.shape}], expected ${logits.dtype}[${classes}]`);
  const flat = reshape(logits, [rows, classes]);
  const wanted = ignoreIndex === undefined || targets.dtype !== "i32" ? targets : withoutTarget(targets, ignoreIndex);
  const plain = tokenLosses(flat, wanted);
  const ids = hostView(wanted) as Int32Array;
  const classWeight = weight && hostNumbers(weight);
  const factors = Array.from(ids, (id) => (id < 0 ? 0 : Number(classWeight?.[id] ?? 1)));
  const alongRows = (values: readonly number[]): Tensor => tensor(values, [rows], logits.dtype);
  let losses = weight ? mul(plain, alongRows(factors)) : plain;
  if (labelSmoothing > 0) {
    const spread = logSoftmax(flat);
    const all = sum(weight ? mul(spread, weight) : spread, { axes: [-1] });
    const scored = alongRows(factors.map((_, row) => (ids[row]! < 0 ? 0 : -labelSmoothing / classes)));
    losses = add(scale(losses, 1 - labelSmoothing), mul(all, scored));
  }
  if (reduction === "none") return reshape(losses, targets.shape);
  const total = factors.reduce((a, b) => a + b, 0);
  // a batch without a scored row has loss 0
  return reduction === "sum" ? sum(losses) : scale(sum(losses), total === 0 ? 1 : 1 / total);
}

const withoutTarget = (targets: Tensor, ignored: number): Tensor =>
  tensor(
    Array.from(hostNumbers(targets) as Int32Array, (id) => (id === ignored ? -1 : id)),
    targets.shape,
    "i32",
  );

/** log(1 + exp(x)) without overflow; its gradient at 0 is ½. */
const softplus = (x: Tensor): Tensor => add(maximum(x, zeros([1], x.dtype)), log(affine(exp(neg(abs(x))), 1, 1)));

export interface BinaryCrossEntropyOptions extends LossOptions {
  /** Factor of the positive term, broadcast to x. It gets no gradient. */
  posWeight?: Tensor;
}

/**
 * −posWeight·y·log σ(x) − (1 − y)·log(1 − σ(x)) for logits x and targets y in [0, 1].
 *
 * @example
 * const loss = binaryCrossEntropyWithLogits(tensor([0, 2]), tensor([1, 0]));
 */
export function binaryCrossEntropyWithLogits(x: Tensor, target: Tensor, { reduction = "mean", posWeight }: BinaryCrossEntropyOptions = {}): Tensor {
  alike("binaryCrossEntropyWithLogits", x, target);
  const positive = posWeight ? mul(target, posWeight) : target;
  return reduced(add(mul(positive, softplus(neg(x))), mul(affine(target, -1, 1), softplus(x))), reduction);
}

/** The smallest normal f32: what stands under a logarithm in place of 0. */
const TINY = 2 ** -126;

export interface KlDivergenceOptions {
  /** `batchmean` divides the sum by the first extent, which is the divergence's definition; defaults to `mean`, as torch does. */
  reduction?: Reduction | "batchmean";
  /** The target holds log-probabilities; defaults to false. */
  logTarget?: boolean;
}

/**
 * target·(log target − x) for log-probabilities x; where the target is 0 so is the term. As torch's kl_div.
 *
 * @example
 * const loss = klDivergence(logSoftmax(zeros([1, 2])), tensor([0.25, 0.75], [1, 2]), { reduction: "batchmean" });
 */
export function klDivergence(x: Tensor, target: Tensor, { reduction = "mean", logTarget = false }: KlDivergenceOptions = {}): Tensor {
  alike("klDivergence", x, target);
  const losses = logTarget ? mul(exp(target), sub(target, x)) : mul(target, sub(log(maximum(target, tensor([TINY], [1], target.dtype))), x));
  return reduction === "batchmean" ? scale(sum(losses), 1 / Math.max(1, x.shape[0] ?? 1)) : reduced(losses, reduction);
}

/** (x − target)² */
export function meanSquaredError(x: Tensor, target: Tensor, { reduction = "mean" }: LossOptions = {}): Tensor {
  return reduced(square(sub(x, target)), reduction);
}

/** |x − target| */
export function l1Loss(x: Tensor, target: Tensor, { reduction = "mean" }: LossOptions = {}): Tensor {
  alike("l1Loss", x, target);
  return reduced(abs(sub(x, target)), reduction);
}

/** ½d²/beta where d = |x − target| is below beta, else d − beta/2; beta defaults to 1. */
export function smoothL1Loss(x: Tensor, target: Tensor, { reduction = "mean", beta = 1 }: LossOptions & { beta?: number } = {}): Tensor {
  alike("smoothL1Loss", x, target);
  if (!(beta > 0)) throw new StrutError("option", `smoothL1Loss: beta is ${beta}; it must be above 0`, { path: "beta", hint: "With beta 0 it is l1Loss." });
  const distance = abs(sub(x, target));
  const near = minimum(distance, tensor([beta], [1], x.dtype));
  return reduced(scale(mul(near, sub(distance, scale(near, 0.5))), 1 / beta), reduction);
}
