import { StrutError } from "../errors.ts";
import type { Params, Site, State, View } from "../nn/contracts.ts";
import type { Optimization } from "../optimizers/optimization.ts";
import { keep, noGrad, Parameter, Tensor, zeros } from "../tensor/index.ts";
import { selectSlices } from "../tensor/ops/shape.ts";
import { hostView, sizeOf } from "../tensor/tensor.ts";

type Following = "keep" | "gather" | "zero" | "reset";

/** Sets flagged rows (axis 0) of a contiguous tensor to 0. */
function zeroRows(x: Tensor, rows: Uint8Array): void {
  const view = hostView(x);
  const inner = sizeOf(x.shape.slice(1));
  rows.forEach((flag, row) => flag && view.fill(0 as never, row * inner, (row + 1) * inner));
}

const alike = (a: Tensor, b: Tensor): boolean => String(a.shape) === String(b.shape);

/** The tensors of a state that stand for elements of w one by one, with where they lie. 8-bit codes (u8) share a scale with their neighbours. */
function* elementwise(state: State, w: Tensor): Generator<[State, string, Tensor]> {
  for (const [key, value] of Object.entries(state)) {
    if (value instanceof Tensor) {
      if (alike(value, w) && value.dtype !== "u8") yield [state, key, value];
    } else if (typeof value !== "number") yield* elementwise(value, w);
  }
}

const tensorsIn = (state: State): number =>
  Object.values(state).reduce((n: number, value) => n + (value instanceof Tensor ? 1 : typeof value === "number" ? 0 : tensorsIn(value)), 0);

/** Shapes and masks of the parameters in training; optimiser state and this step's gradients follow them. */
export class Structure {
  readonly masks = new Map<Parameter, Uint8Array>();
  readonly #optimization: Pick<Optimization, "statesOf" | "drop">;
  readonly #gradients: () => Map<Parameter, Tensor>;

  constructor(optimization: Pick<Optimization, "statesOf" | "drop">, gradients: () => Map<Parameter, Tensor>) {
    this.#optimization = optimization;
    this.#gradients = gradients;
  }

  resize(w: Parameter, axis: number, index: Int32Array, following: Following, fill = 0): void {
    const at = axis < 0 ? axis + w.shape.length : axis;
    const extent = w.shape[at];
    if (extent === undefined) throw new StrutError("shape", `resize: ${w.name} of shape [${w.shape}] has no axis ${axis}`);
    for (const i of index)
      if (i < -1 || i >= extent) throw new StrutError("range", `resize: index ${i} does not lie in −1…${extent - 1}, the extent of axis ${axis} of ${w.name}`);
    if (following === "keep" && index.length !== extent)
      throw new StrutError("shape", `resize: the optimiser state of ${w.name} can only be kept where its extent stays ${extent}, not ${index.length}`, {
        hint: 'Use "gather", "zero" or "reset".',
      });
    noGrad(() => {
      const value = selectSlices(w, at, index, fill);
      this.#follow(w, at, index, following, value.shape);
      const gradient = this.#gradients().get(w);
      if (gradient) this.#gradients().set(w, selectSlices(gradient, at, index, 0));
      const mask = this.masks.get(w);
      if (mask && at === 0)
        this.masks.set(
          w,
          Uint8Array.from(index, (i) => (i < 0 ? 0 : mask[i]!)),
        );
      w.assign(value);
      this.hold(w);
    });
  }

  #follow(w: Parameter, axis: number, index: Int32Array, following: Following, shape: readonly number[]): void {
    if (following === "keep") return;
    if (following === "reset") return this.#optimization.drop(w);
    for (const state of this.#optimization.statesOf(w)) {
      const parts = [...elementwise(state, w)];
      if (parts.length !== tensorsIn(state))
        throw new StrutError("shape", `resize: the optimiser of ${w.name} holds tensors that are not shaped like it or in 8-bit blocks, which cannot follow`, {
          hint: 'Use "reset", so that its state starts anew.',
        });
      for (const [owner, key, value] of parts) owner[key] = keep(following === "zero" ? zeros(shape, value.dtype) : selectSlices(value, axis, index, 0));
    }
  }

  mask(w: Parameter, rows: Uint8Array | null): void {
    if (!rows) return void this.masks.delete(w);
    if (rows.length !== w.shape[0]) throw new StrutError("shape", `mask: ${rows.length} flags for ${w.name}, which has ${w.shape[0] ?? 0} rows`);
    this.masks.set(w, rows.slice());
    this.hold(w);
    const gradient = this.#gradients().get(w);
    if (gradient) zeroRows(gradient, rows);
  }

  /** Masked rows of weights and moments are 0 again. */
  hold(w: Parameter): void {
    const rows = this.masks.get(w);
    if (!rows) return;
    zeroRows(w, rows);
    for (const state of this.#optimization.statesOf(w)) for (const [, , value] of elementwise(state, w)) zeroRows(value, rows);
  }

  /** Masked rows of this step's gradients are 0. */
  maskGradients(): void {
    for (const [w, rows] of this.masks) {
      const gradient = this.#gradients().get(w);
      if (gradient) zeroRows(gradient, rows);
    }
  }

  view<P extends Params>(site: Site, params: P): View<P> {
    const parameter = (name: string): Parameter => {
      const found = params[name];
      if (found instanceof Parameter) return found;
      throw new StrutError("parameter", `${site.path} has no parameter ${name} that could change`, { hint: `It has ${Object.keys(params).join(", ")}.` });
    };
    return {
      site,
      params,
      resize: (name, axis, index, state, fill) => this.resize(parameter(name), axis, index, state, fill),
      mask: (name, rows) => this.mask(parameter(name), rows),
    };
  }
}
