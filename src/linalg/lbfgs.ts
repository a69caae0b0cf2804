import { StrutError } from "../errors.ts";
import { scope } from "../tensor/scope.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";
import { addScaled, dot, numbersOf } from "./vectors.ts";

/** The value at x and the gradient, of x's shape; x is f64. */
export type Objective = (x: Tensor) => Evaluation | Promise<Evaluation>;

export interface Evaluation {
  value: number;
  gradient: Tensor;
}

export interface LbfgsOptions {
  /** Pairs of steps and gradient differences kept; defaults to 10. */
  history?: number;
  /** Ends when no entry of the gradient is larger; defaults to 1e-6. */
  tolerance?: number;
  /** Steps at most; defaults to 200. */
  iterations?: number;
}

export interface Lbfgs {
  /** Of x0's dtype. */
  x: Tensor;
  value: number;
  /** max |∂f/∂xᵢ| */
  gradient: number;
  iterations: number;
  evaluations: number;
  converged: boolean;
}

/** A place on the search line. */
interface Place {
  step: number;
  x: Float64Array;
  value: number;
  gradient: Float64Array;
  /** Derivative along the line. */
  slope: number;
}

/** Sufficient decrease and curvature: Nocedal & Wright 2006, equation 3.7. */
const [DECREASE, CURVATURE] = [1e-4, 0.9];

/** Where the cubic through two values and slopes is least, kept off the ends of the interval by a tenth of it. */
function between(a: Place, b: Place): number {
  const width = b.step - a.step;
  const theta = a.slope + b.slope - (3 * (b.value - a.value)) / width;
  const root = Math.sign(width) * Math.sqrt(theta * theta - a.slope * b.slope);
  const share = 1 - (b.slope + root - theta) / (b.slope - a.slope + 2 * root);
  return a.step + width * (Number.isFinite(share) ? Math.min(0.9, Math.max(0.1, share)) : 0.5);
}

/** A place that meets the strong Wolfe conditions, else the lowest one seen, else `start`: algorithms 3.5 and 3.6 there. */
async function lineSearch(at: (step: number) => Promise<Place>, start: Place, first: number): Promise<Place> {
  const enough = (p: Place): boolean => Number.isFinite(p.value) && Number.isFinite(p.slope) && p.value <= start.value + DECREASE * p.step * start.slope;
  const flat = (p: Place): boolean => Math.abs(p.slope) <= -CURVATURE * start.slope;
  let [low, high]: [Place, Place | undefined] = [start, undefined];
  for (let tries = 0, step = first; tries < 40; tries++) {
    const place = await at(step);
    if (!enough(place) || (low.step > 0 && place.value >= low.value)) high = place;
    else if (flat(place)) return place;
    else {
      if (place.slope * (high ? high.step - low.step : 1) >= 0) high = low;
      low = place;
    }
    if (high && Math.abs(high.step - low.step) <= 1e-12 * Math.max(high.step, low.step)) break;
    step = high ? between(low, high) : 2 * step;
  }
  return low.value < start.value ? low : start;
}

/** −H·g with the inverse Hessian H that the pairs stand for: algorithm 7.4 there. */
function direction(gradient: Float64Array, pairs: readonly { s: Float64Array; y: Float64Array; sy: number }[]): Float64Array {
  const d = gradient.map((x) => -x);
  const shares = new Float64Array(pairs.length);
  for (let i = pairs.length - 1; i >= 0; i--) {
    const { s, y, sy } = pairs[i]!;
    shares[i] = dot(s, d) / sy;
    addScaled(d, -shares[i]!, y);
  }
  const last = pairs.at(-1);
  if (last) {
    const factor = last.sy / dot(last.y, last.y);
    for (let i = 0; i < d.length; i++) d[i]! *= factor;
  }
  pairs.forEach(({ s, y, sy }, i) => addScaled(d, shares[i]! - dot(y, d) / sy, s));
  return d;
}

const largest = (x: Float64Array): number => x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/**
 * A local minimum of a smooth function by L-BFGS (Liu & Nocedal 1989) with a strong Wolfe line search, in f64. Values that are
 * not finite shorten the step; at x0 they are an error.
 *
 * @example
 * const { x } = await lbfgs((x) => ({ value: sumSquares([x]), gradient: scale(x, 2) }), tensor([3, -1]));
 */
export async function lbfgs(objective: Objective, x0: Tensor, { history = 10, tolerance = 1e-6, iterations = 200 }: LbfgsOptions = {}): Promise<Lbfgs> {
  let evaluations = 0;
  const evaluate = (x: Float64Array): Promise<{ value: number; gradient: Float64Array }> =>
    scope(async () => {
      evaluations++;
      const { value, gradient } = await objective(tensor(x, x0.shape, "f64"));
      return { value, gradient: numbersOf(gradient, x0.shape, "lbfgs: the gradient") };
    });
  let x = numbersOf(x0, x0.shape, "lbfgs: x0");
  let { value, gradient } = await evaluate(x);
  if (!Number.isFinite(value) || !Number.isFinite(largest(gradient)))
    throw new StrutError("value", `lbfgs: the objective is ${value} at x0, its largest derivative ${largest(gradient)}; both must be finite`);
  let pairs: { s: Float64Array; y: Float64Array; sy: number }[] = [];
  let done = 0;
  while (done < iterations && largest(gradient) > tolerance) {
    const d = direction(gradient, pairs);
    const start: Place = { step: 0, x, value, gradient, slope: dot(gradient, d) };
    const at = async (step: number): Promise<Place> => {
      const moved = x.slice();
      addScaled(moved, step, d);
      const found = await evaluate(moved);
      return { step, x: moved, ...found, slope: dot(found.gradient, d) };
    };
    const first = pairs.length > 0 ? 1 : Math.min(1, 1 / d.reduce((sum, e) => sum + Math.abs(e), 0));
    const place = start.slope < 0 ? await lineSearch(at, start, first) : start;
    if (place.step === 0) {
      if (pairs.length === 0) break;
      pairs = [];
      continue;
    }
    const s = place.x.map((e, i) => e - x[i]!);
    const y = place.gradient.map((e, i) => e - gradient[i]!);
    const sy = dot(s, y);
    if (sy > 0) pairs = [...pairs, { s, y, sy }].slice(-history);
    ({ x, value, gradient } = place);
    done++;
  }
  const slope = largest(gradient);
  return { x: tensor(x, x0.shape, x0.dtype), value, gradient: slope, iterations: done, evaluations, converged: slope <= tolerance };
}
