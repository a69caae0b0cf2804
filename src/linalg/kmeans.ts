import { StrutError } from "../errors.ts";
import { Rng } from "../tensor/rng.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, hostView, tensor, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";
import { extents, largestMagnitude } from "./numbers.ts";

export interface KmeansOptions {
  /** Starts, of which the best result counts; defaults to 1. */
  restarts?: number;
  /** Updates of the centroids at most; defaults to 100. */
  iterations?: number;
  /** Source of the starts; defaults to seed 0. */
  rng?: Rng;
  /** "k-means++" draws starts far from each other (Arthur & Vassilvitskii 2007), "random" any points; defaults to "k-means++". */
  seeding?: "k-means++" | "random";
  /** At most so many points, spread evenly over all, that starts are drawn from; defaults to the larger of 16384 and 16·k. */
  sample?: number;
}

export interface Kmeans {
  /** k×d, of the points' dtype. */
  centroids: Tensor;
  /** The nearest centroid of each point. */
  labels: Int32Array;
  /** Σ ‖point − centroid‖². */
  inertia: number;
}

/** Points n×d, contiguous; `values` finds them anew, because an allocation may move memory. */
interface Points {
  n: number;
  d: number;
  k: number;
  values: () => Float64Array;
  centre: Float64Array;
}

interface State {
  centroids: Float64Array;
  labels: Int32Array;
  /** Squared, to the own centroid. */
  distances: Float64Array;
  inertia: number;
}

/** About so many f64 numbers stand in memory at a time for a block of points, and for its distances. */
const CHUNK = 1 << 21;

/** Means of all points, which are taken off so that |x|² − 2x·c + |c|² loses nothing when the points lie far from 0. */
function meanOf(values: Float64Array, n: number, d: number): Float64Array {
  const mean = new Float64Array(d);
  for (let i = 0, at = 0; i < n; i++) for (let j = 0; j < d; j++) mean[j]! += values[at++]!;
  return mean.map((x) => x / n);
}

function squaredDistance(values: Float64Array, i: number, from: Float64Array, c: number, d: number): number {
  let sum = 0;
  for (let j = 0, a = i * d, b = c * d; j < d; j++) sum += (values[a++]! - from[b++]!) ** 2;
  return sum;
}

/** Numbers of the points that seeding may take. */
function candidates(n: number, most: number, rng: Rng): Int32Array {
  if (n <= most) return Int32Array.from({ length: n }, (_, i) => i);
  return Int32Array.from({ length: most }, (_, i) => Math.floor(((i + rng.random()) * n) / most));
}

/** One of the weights' numbers, each with probability weight / Σ weights. */
function draw(weights: Float64Array, rng: Rng): number {
  let rest = rng.random() * weights.reduce((sum, x) => sum + x, 0);
  let last = 0;
  for (let i = 0; i < weights.length; i++) {
    if (!(weights[i]! > 0)) continue;
    last = i;
    rest -= weights[i]!;
    if (rest < 0) break;
  }
  return last;
}

/** k×d centroids that are points. With fewer distinct points than k some of them are the same. */
function seeds({ n, d, k, values }: Points, { seeding, sample, rng }: Required<KmeansOptions>): Float64Array {
  const points = values();
  const among = candidates(n, sample, rng);
  const out = new Float64Array(k * d);
  const take = (c: number, i: number): void => out.set(points.subarray(i * d, (i + 1) * d), c * d);
  if (seeding === "random") {
    const order = rng.permutation(among.length);
    for (let c = 0; c < k; c++) take(c, among[order[c]!]!);
    return out;
  }
  take(0, among[rng.integer(among.length)]!);
  const nearest = new Float64Array(among.length).fill(Infinity);
  for (let c = 1; c < k; c++) {
    for (let i = 0; i < among.length; i++) nearest[i] = Math.min(nearest[i]!, squaredDistance(points, among[i]!, out, c - 1, d));
    take(c, among[draw(nearest, rng)]!);
  }
  return out;
}

/** Labels and distances of all points: the largest x·c − |c|²/2 is the nearest centroid, in blocks of points through one product each. */
function assign({ n, d, k, values, centre }: Points, centroids: Float64Array): State {
  const [labels, distances] = [new Int32Array(n), new Float64Array(n)];
  let inertia = 0;
  scope(() => {
    const rows = Math.max(1, Math.min(n, Math.floor(CHUNK / Math.max(d, k))));
    const shifted = centroids.map((x, at) => x - centre[at % d]!);
    const halves = Float64Array.from({ length: k }, (_, c) => squaredDistance(shifted, c, new Float64Array(d), 0, d) / 2);
    const around = tensor(shifted, [k, d], "f64");
    const [chunk, scores] = [empty([rows, d], "f64"), empty([rows, k], "f64")];
    for (let top = 0; top < n; top += rows) {
      const count = Math.min(rows, n - top);
      const [points, to] = [values(), doubles(chunk)];
      for (let i = 0, at = 0, from = top * d; i < count; i++) for (let j = 0; j < d; j++) to[at++] = points[from++]! - centre[j]!;
      multiplyInto(block(scores, 0, count, 0, k), block(chunk, 0, count, 0, d), turned(around));
      const score = doubles(scores);
      for (let i = 0, at = 0; i < count; i++) {
        let [best, most] = [0, -Infinity];
        for (let c = 0; c < k; c++) {
          const s = score[at++]! - halves[c]!;
          if (s > most) {
            most = s;
            best = c;
          }
        }
        labels[top + i] = best;
        inertia += distances[top + i] = squaredDistance(points, top + i, centroids, best, d);
      }
    }
  });
  return { centroids, labels, distances, inertia };
}

/** Means of the clusters, in f64. An empty cluster moves to the point farthest from its centroid; if all points stand on centroids, it stays. */
function update({ n, d, k, values }: Points, { centroids, labels, distances }: State): Float64Array {
  const points = values();
  const counts = new Int32Array(k);
  for (const label of labels) counts[label]!++;
  const [owners, far] = [labels.slice(), distances.slice()];
  for (let vacant = counts.indexOf(0); vacant >= 0; vacant = counts.indexOf(0, vacant + 1)) {
    let farthest = -1;
    for (let i = 0; i < n; i++) if (far[i]! > (farthest < 0 ? 0 : far[farthest]!) && counts[owners[i]!]! > 1) farthest = i;
    if (farthest < 0) break;
    far[farthest] = 0;
    counts[owners[farthest]!]!--;
    counts[(owners[farthest] = vacant)]!++;
  }
  const sums = new Float64Array(k * d);
  for (let i = 0, from = 0; i < n; i++) for (let j = 0, to = owners[i]! * d; j < d; j++) sums[to++]! += points[from++]!;
  return sums.map((x, at) => {
    const members = counts[Math.floor(at / d)]!;
    return members > 0 ? x / members : centroids[at]!;
  });
}

/** Lloyd's algorithm: assigns and updates until the inertia does not fall any more. */
function lloyd(points: Points, start: Float64Array, iterations: number): State {
  let state = assign(points, start);
  for (let i = 0; i < iterations; i++) {
    const next = assign(points, update(points, state));
    if (!(next.inertia < state.inertia)) break;
    state = next;
  }
  return state;
}

/**
 * k centroids with a small Σ ‖point − nearest centroid‖² for points n×d, by Lloyd's algorithm 1982 in f64, deterministic for a seed.
 * No cluster is empty unless fewer than k points differ or the iterations end too soon.
 *
 * @example
 * const { centroids, labels } = await kmeans(tensor([0, 0.1, 5, 5.1], [4, 1]), 2, { restarts: 3 });
 */
export async function kmeans(points: Tensor, k: number, options: KmeansOptions = {}): Promise<Kmeans> {
  const [n, d] = extents(points, "kmeans");
  if (!Number.isInteger(k) || k < 1 || k > n) throw new StrutError("range", `kmeans: k = ${k} is not a whole number between 1 and ${n}, the number of points`);
  const full = { restarts: 1, iterations: 100, rng: new Rng(0), seeding: "k-means++" as const, sample: Math.max(16384, 16 * k), ...options };
  if (!(full.sample >= k)) throw new StrutError("range", `kmeans: a sample of ${full.sample} points cannot give ${k} starts; it needs at least k`);
  if (!(full.restarts >= 1)) throw new StrutError("range", `kmeans: restarts is ${full.restarts}; at least 1 is needed`);
  largestMagnitude(points, "kmeans");
  return scope(() => {
    const source = points.contiguous ? points : copyOf(points);
    const values = () => hostView(source) as Float64Array;
    const data = { n, d, k, values, centre: meanOf(values(), n, d) };
    let best: State | undefined;
    for (let i = 0; i < full.restarts; i++) {
      const state = lloyd(data, seeds(data, full), full.iterations);
      if (!best || state.inertia < best.inertia) best = state;
    }
    const { centroids, labels, inertia } = best!;
    if (!Number.isFinite(inertia)) throw new StrutError("value", "kmeans: the squared distances of the points overflow", { hint: "Scale the points down." });
    return { centroids: tensor(centroids, [k, d], points.dtype), labels, inertia };
  });
}
