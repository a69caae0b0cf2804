import { StrutError } from "../../errors.ts";
import { zeros, type Tensor } from "../tensor.ts";
import { add, affine, mul, sigmoid, tanh } from "./elementwise.ts";
import { linear } from "./matmul.ts";
import { concat, reshape, slice } from "./shape.ts";

/** Weights of a recurrent cell in torch's layout: gates stacked along the first axis, each of `hidden` rows. */
export interface CellWeights {
  /** [gates·hidden, in] */
  readonly weightIh: Tensor;
  /** [gates·hidden, hidden] */
  readonly weightHh: Tensor;
  readonly biasIh?: Tensor;
  readonly biasHh?: Tensor;
}

export interface LstmState {
  readonly h: Tensor;
  readonly c: Tensor;
}

/** Both projections, checked. */
function projected(name: string, gates: number, x: Tensor, h: Tensor, w: CellWeights): [Tensor, Tensor, number] {
  const hidden = w.weightHh.shape[1]!;
  if (w.weightIh.shape[0] !== gates * hidden || w.weightHh.shape[0] !== gates * hidden || h.shape.at(-1) !== hidden)
    throw new StrutError(
      "shape",
      `${name}: weightIh [${w.weightIh.shape}] and weightHh [${w.weightHh.shape}] must have ${gates}·hidden rows, and h [${h.shape}] must end in hidden`,
    );
  return [linear(x, w.weightIh, w.biasIh ?? null), linear(h, w.weightHh, w.biasHh ?? null), hidden];
}

/** Gate number i. */
const gate = (x: Tensor, i: number, hidden: number): Tensor => slice(x, -1, i * hidden, (i + 1) * hidden);

/**
 * c′ = σ(f)⊙c + σ(i)⊙tanh(g), h′ = σ(o)⊙tanh(c′) with gates i, f, g, o of W_ih·x + b_ih + W_hh·h + b_hh; x [batch, in].
 * As torch's LSTMCell.
 */
export function lstmCell(x: Tensor, { h, c }: LstmState, weights: CellWeights): LstmState {
  const [fromX, fromH, hidden] = projected("lstmCell", 4, x, h, weights);
  const gates = add(fromX, fromH);
  const [i, f, g, o] = [0, 1, 2, 3].map((n) => gate(gates, n, hidden)) as [Tensor, Tensor, Tensor, Tensor];
  const next = add(mul(sigmoid(f), c), mul(sigmoid(i), tanh(g)));
  return { h: mul(sigmoid(o), tanh(next)), c: next };
}

/**
 * h′ = (1 − z)⊙n + z⊙h with gates r, z = σ(W·x + U·h) and n = tanh(W_n·x + r⊙(U_n·h)), biases inside; x [batch, in].
 * As torch's GRUCell.
 */
export function gruCell(x: Tensor, h: Tensor, weights: CellWeights): Tensor {
  const [fromX, fromH, hidden] = projected("gruCell", 3, x, h, weights);
  const both = (n: number): Tensor => sigmoid(add(gate(fromX, n, hidden), gate(fromH, n, hidden)));
  const [r, z] = [both(0), both(1)];
  const n = tanh(add(gate(fromX, 2, hidden), mul(r, gate(fromH, 2, hidden))));
  return add(mul(affine(z, -1, 1), n), mul(z, h));
}

export interface SequenceOptions {
  /** From the last step to the first; outputs stay in the input's order. Defaults to false. */
  reverse?: boolean;
}

/** Runs `step` over the tokens of x [batch, tokens, in]; outputs are stacked along the second axis. */
function overTokens<S>(x: Tensor, state: S, step: (x: Tensor, state: S) => S, hiddenOf: (state: S) => Tensor, reverse: boolean): { output: Tensor; state: S } {
  const [batch, tokens, inner] = x.shape as [number, number, number];
  if (x.shape.length !== 3 || tokens === 0) throw new StrutError("shape", `a sequence must be [batch, tokens, in] with at least one token, got [${x.shape}]`);
  const outputs = new Array<Tensor>(tokens);
  for (let i = 0; i < tokens; i++) {
    const at = reverse ? tokens - 1 - i : i;
    state = step(reshape(slice(x, 1, at, at + 1), [batch, inner]), state);
    outputs[at] = reshape(hiddenOf(state), [batch, 1, -1]);
  }
  return { output: concat(outputs, 1), state };
}

/**
 * An LSTM layer over x [batch, tokens, in]: all hidden states [batch, tokens, hidden] and the last state.
 *
 * @example
 * const { output } = lstm(ones([2, 5, 3]), { weightIh: ones([16, 3]), weightHh: ones([16, 4]) }); // [2, 5, 4]
 */
export function lstm(x: Tensor, weights: CellWeights, state?: LstmState, { reverse = false }: SequenceOptions = {}): { output: Tensor; state: LstmState } {
  const start = (): Tensor => zeros([x.shape[0]!, weights.weightHh.shape[1]!], x.dtype);
  return overTokens(
    x,
    state ?? { h: start(), c: start() },
    (token, now) => lstmCell(token, now, weights),
    ({ h }) => h,
    reverse,
  );
}

/**
 * A GRU layer over x [batch, tokens, in]: all hidden states [batch, tokens, hidden] and the last one.
 *
 * @example
 * const { output } = gru(ones([2, 5, 3]), { weightIh: ones([12, 3]), weightHh: ones([12, 4]) }); // [2, 5, 4]
 */
export function gru(x: Tensor, weights: CellWeights, state?: Tensor, { reverse = false }: SequenceOptions = {}): { output: Tensor; state: Tensor } {
  const start = state ?? zeros([x.shape[0]!, weights.weightHh.shape[1]!], x.dtype);
  return overTokens(
    x,
    start,
    (token, h) => gruCell(token, h, weights),
    (h) => h,
    reverse,
  );
}
