import { csr, dense, largestOfM, nOfM } from "strut/operators";
import { csrIndex, noGrad, Rng, scope, sparseMatmul, tensor } from "strut/tensor";
import { bench, type Options } from "./measure.ts";

/** The transition matrix of a graph whose expected degrees fall as rank^−0.5, as the peer draws it: pointers, columns, values. */
function transition(nodes: number, edges: number, rng: Rng): { pointers: Int32Array; columns: Int32Array; values: Float32Array } {
  const cumulative = new Float64Array(nodes);
  for (let i = 0, total = 0; i < nodes; i++) cumulative[i] = total += (i + 1) ** -0.5;
  const draw = (): number => {
    const wanted = rng.random() * cumulative[nodes - 1]!;
    let [low, high] = [0, nodes - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (cumulative[middle]! > wanted) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  const seen = new Set<number>();
  while (seen.size < edges) {
    const [a, b] = [draw(), draw()];
    if (a !== b) seen.add(Math.min(a, b) * nodes + Math.max(a, b));
  }
  const both = new Float64Array(2 * edges);
  let at = 0;
  for (const key of seen) {
    both[at++] = key;
    both[at++] = (key % nodes) * nodes + Math.floor(key / nodes);
  }
  both.sort();
  const pointers = new Int32Array(nodes + 1);
  for (const key of both) pointers[Math.floor(key / nodes) + 1]!++;
  for (let i = 0; i < nodes; i++) pointers[i + 1]! += pointers[i]!;
  const columns = Int32Array.from(both, (key) => key % nodes);
  const values = Float32Array.from(both, (key) => 1 / (pointers[Math.floor(key / nodes) + 1]! - pointers[Math.floor(key / nodes)]!));
  return { pointers, columns, values };
}

const integers = (values: ArrayLike<number>) => tensor(values, [values.length], "i32");

/** CSR times dense on a graph, and sparse weights beside a dense one at batch 512. */
export async function sparse(options: Options): Promise<void> {
  const rng = new Rng(20261125);
  const [nodes, edges, dim] = [100_000, 2_000_000, 256];
  const graph = transition(nodes, edges, rng);
  const [index, values, x] = [csrIndex(integers(graph.pointers), integers(graph.columns), nodes), tensor(graph.values), rng.normal([nodes, dim], 1)];
  await bench(options, "spmm-torch-csr", `${nodes} nodes nnz ${2 * edges} d=${dim}`, () => noGrad(() => scope(() => void sparseMatmul(index, values, x))), {
    extra: (s) => ({ gflops: Math.round((2 * 2 * edges * dim) / s / 1e7) / 100 }),
  });
  const [out, inner, batch] = [3072, 768, 512];
  const [weight, input] = [rng.normal([out, inner], 1), rng.normal([batch, inner], 1)];
  const numbers = (await weight.data()) as Float32Array;
  const whole = dense(weight);
  const time = async (name: string, apply: () => unknown): Promise<void> =>
    bench(options, name, `${batch}x${inner} by ${out}x${inner}`, () => noGrad(() => scope(() => void apply())), { runs: 15, warmup: 3 });
  await time("linear dense", () => whole.apply(input));
  for (const sparsity of [0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]) {
    const places = Array.from({ length: numbers.length }, (_, i) => i).filter(() => rng.random() >= sparsity);
    const pointers = new Int32Array(out + 1);
    for (const place of places) pointers[Math.floor(place / inner) + 1]!++;
    for (let i = 0; i < out; i++) pointers[i + 1]! += pointers[i]!;
    const w = csr(tensor(places.map((place) => numbers[place]!)), integers(places.map((place) => place % inner)), integers(pointers), inner);
    await time(`linear csr ${sparsity}`, () => w.apply(input));
  }
  for (const [n, m] of [
    [2, 4],
    [4, 8],
    [1, 8],
  ] as const) {
    const { values: kept, places } = largestOfM(weight, [n, m]);
    const w = nOfM(kept, places, [n, m], inner);
    await time(`linear ${n}:${m}`, () => w.apply(input));
  }
}
