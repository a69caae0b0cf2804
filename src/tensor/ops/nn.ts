import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { needsGradient, noGrad, record, recording } from "../tape.ts";
import { empty, full, hostNumbers, hostView, Tensor, tensor, zeros, type Numbers } from "../tensor.ts";
import { scale } from "./elementwise.ts";
import { gemmInto } from "./matmul.ts";
import { sum } from "./reduce.ts";
import { contiguous, slice, transpose } from "./shape.ts";

const rowsOf = (x: Tensor): [number, number] => [x.size / Math.max(1, x.shape.at(-1)!), x.shape.at(-1)!];

/** Softmax over the last axis. */
export function softmax(x: Tensor): Tensor {
  const source = contiguous(x);
  const out = empty(x.shape, x.dtype);
  kernels().softmax(out, source, ...rowsOf(x));
  return record(out, [source], (g) => {
    const dx = empty(x.shape, x.dtype);
    kernels().softmax_backward(dx, out, contiguous(g), ...rowsOf(x));
    return [dx];
  });
}

/** (x − mean)/√(var + eps)·weight + bias over the last axis. */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor | null, eps: number): Tensor {
  const source = contiguous(x);
  const [rows, cols] = rowsOf(x);
  const [out, average, rstd] = [empty(x.shape, x.dtype), empty([rows], x.dtype), empty([rows], x.dtype)];
  kernels().layer_norm(out, average, rstd, source, weight, bias, rows, cols, eps);
  const backward = (g: Tensor): (Tensor | null)[] => {
    const dx = empty(x.shape, x.dtype);
    const dw = needsGradient(weight) ? empty(weight.shape, x.dtype) : null;
    const db = bias && needsGradient(bias) ? empty(bias.shape, x.dtype) : null;
    kernels().layer_norm_backward(dx, dw, db, contiguous(g), source, average, rstd, weight, rows, cols);
    return bias ? [dx, dw, db] : [dx, dw];
  };
  return record(out, bias ? [source, weight, bias] : [source, weight], backward, [average, rstd]);
}

/** x/√(mean x² + eps)·weight over the last axis. */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  const source = contiguous(x);
  const [rows, cols] = rowsOf(x);
  const [out, rstd] = [empty(x.shape, x.dtype), empty([rows], x.dtype)];
  kernels().rms_norm(out, rstd, source, weight, rows, cols, eps);
  const backward = (g: Tensor): (Tensor | null)[] => {
    const dx = empty(x.shape, x.dtype);
    const dw = needsGradient(weight) ? empty(weight.shape, x.dtype) : null;
    kernels().rms_norm_backward(dx, dw, contiguous(g), source, rstd, weight, rows, cols);
    return [dx, dw];
  };
  return record(out, [source, weight], backward, [rstd]);
}

/** Rotates heads [batch, seq, heads, dim] by position; cos and sin are [seq, dim/2]. Rotate-half layout, as in Hugging Face's LLaMA. */
export function rotary(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
  const [batch, seq, heads, dim] = x.shape as [number, number, number, number];
  const turn = (value: Tensor, inverse: number): Tensor => {
    const source =
      value.strides[3] === 1 && value.strides[2] === dim && (batch === 1 || value.strides[0] === seq * value.strides[1]!) ? value : contiguous(value);
    const out = empty(x.shape, x.dtype);
    kernels().rotary(out, source, cos, sin, batch * seq, seq, heads, dim, source.strides[1]!, inverse);
    return out;
  };
  return record(turn(x, 0), [x], (g) => [turn(g, 1)]);
}

/** Integer ids as an i32 tensor, checked to lie in [0, limit). */
export function indices(ids: Tensor | Numbers, limit: number, shape?: readonly number[]): Tensor {
  const out = ids instanceof Tensor ? contiguous(ids) : tensor(ids, shape ?? [ids.length], "i32");
  if (out.dtype !== "i32") throw new StrutError("dtype", `ids must be i32, got ${out.dtype}`);
  const view = hostView(out) as Int32Array;
  for (let i = 0; i < view.length; i++)
    if (!(view[i]! >= 0 && view[i]! < limit))
      throw new StrutError("range", `id ${view[i]} at position ${i} does not lie in 0…${limit - 1}`, { hint: "Is this the tokenizer of another model?" });
  return out;
}

/** Rows of a table: out[…, :] = table[ids[…], :]. */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  const [rows, dim] = table.shape as [number, number];
  const source = contiguous(table);
  const at = indices(ids, rows);
  const out = empty([...ids.shape, dim], table.dtype);
  kernels().gather_rows(out, source, at, at.size, dim, rows);
  return record(out, [source], (g, sumOf) => {
    // a tied head has filled a table of this size already
    const sum = sumOf(source);
    const dt = sum ?? zeros(table.shape, table.dtype);
    kernels().scatter_add_rows(dt, contiguous(g), at, at.size, dim, rows);
    return [sum ? null : dt];
  });
}

/** −log softmax(logits)[target] of each row; rows with a target below 0 give 0. logits [rows, classes], targets i32 [rows]. */
export function tokenLosses(logits: Tensor, targets: Tensor): Tensor {
  const source = contiguous(logits);
  const [rows, cols] = rowsOf(logits);
  const [losses, lse] = [empty([rows], logits.dtype), empty([rows], logits.dtype)];
  checkTargets(targets, rows, cols);
  kernels().cross_entropy(losses, lse, source, targets, rows, cols);
  const backward = (g: Tensor): Tensor[] => {
    const dx = empty(source.shape, logits.dtype);
    kernels().cross_entropy_backward(dx, source, lse, targets, contiguous(g), rows, cols);
    return [dx];
  };
  return record(losses, [source], backward, [lse]);
}

function checkTargets(targets: Tensor, rows: number, cols: number): number {
  const view = hostView(targets) as Int32Array;
  if (targets.dtype !== "i32" || targets.size !== rows) throw new StrutError("shape", `targets must be ${rows} i32, got ${targets.dtype}[${targets.shape}]`);
  let scored = 0;
  for (const target of view) {
    if (target >= cols) throw new StrutError("range", `target ${target} does not lie in 0…${cols - 1}`);
    if (target >= 0) scored++;
  }
  return scored;
}

const CHUNK = 256;

/**
 * crossEntropy(x·Wᵀ, targets) without ever holding all logits: 256 rows at a time, loss and gradient in one pass.
 * x [rows, in], weight [classes, in].
 */
export function linearCrossEntropy(x: Tensor, weight: Tensor, targets: Tensor): Tensor {
  const source = contiguous(x);
  const [rows, inner] = source.shape as [number, number];
  const cols = weight.shape[0]!;
  if (inner === 0) throw new StrutError("shape", "linearCrossEntropy needs at least one input feature");
  const scored = Math.max(1, checkTargets(targets, rows, cols));
  const wanted = recording([source, weight]);
  const dx = wanted && needsGradient(source) ? empty(source.shape, x.dtype) : null;
  const dw = wanted && needsGradient(weight) ? empty(weight.shape, x.dtype) : null;
  const loss = noGrad(() => {
    const losses = empty([rows], x.dtype);
    const chunk = Math.min(CHUNK, rows);
    const [logits, lse] = [empty([chunk, cols], x.dtype), empty([chunk], x.dtype)];
    const factors = full([chunk], 1 / scored, x.dtype);
    for (let start = 0; start < rows; start += chunk) {
      const end = Math.min(rows, start + chunk);
      const [part, wantedIds, now] = [slice(source, 0, start, end), slice(targets, 0, start, end), slice(logits, 0, 0, end - start)];
      gemmInto(now, part, transpose(weight));
      kernels().cross_entropy(slice(losses, 0, start, end), lse, now, wantedIds, end - start, cols);
      if (!dx && !dw) continue;
      kernels().cross_entropy_backward(now, now, lse, wantedIds, factors, end - start, cols);
      if (dx) gemmInto(slice(dx, 0, start, end), now, weight);
      if (dw) gemmInto(dw, transpose(now), part, { beta: start > 0 ? 1 : 0 });
    }
    return scale(sum(losses), 1 / scored);
  });
  // made for this backward alone, so they are scaled where they are
  return record(loss, [source, weight], (g) => {
    const factor = Number(hostNumbers(g)[0]);
    for (const part of [dx, dw]) if (part && factor !== 1) kernels().axpby(part, factor, part, 0, part.size);
    return [dx, dw];
  });
}
