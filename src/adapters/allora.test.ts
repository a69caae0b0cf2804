import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { forward as run, type Model } from "../models/index.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { backward, mul, noGrad, Rng, start, sum, tensor, type Parameter, type Tensor } from "../tensor/index.ts";
import { adapt, allora, attachedTo, loadAdapter, lora, rowScale, saveAdapter } from "./index.ts";

const [OUT, IN, R, ROWS] = [5, 4, 2, 6];
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
let site: Site;

beforeAll(async () => {
  await start();
  site = { path: "x", depth: 0, role: "x", kind: "linear", out: OUT, in: IN, weight: dense(tensor(sample([OUT, IN], 9), [OUT, IN], "f64")) };
});

const live = (): Live => ({ training: true, step: 0, rng: new Rng(1), values: {} });
const leaves = (size = 1): { A: Parameter; B: Parameter; x: Parameter; g: Tensor } => ({
  A: leaf([R, IN], 1),
  B: leaf([OUT, R], 2, size),
  x: leaf([ROWS, IN], 3),
  g: tensor(sample([ROWS, OUT], 4), [ROWS, OUT], "f64"),
});

/** Gradients of ⟨g, y⟩ by method, and y itself. */
async function pass(method: typeof allora | typeof lora, given: object, { A, B, x, g }: ReturnType<typeof leaves>) {
  const o = parseOptions(method as typeof allora, { r: R, ...(method === (lora as unknown) ? { alpha: R } : {}), ...given } as Record<string, unknown>);
  const base = site.weight.apply(x);
  const forward = (allora === method ? method.forward! : lora.forward!) as unknown as NonNullable<typeof allora.forward>;
  const y = forward(x, base, { A, B }, site, o, live(), {});
  const values = await numbers(y);
  const gradients = backward(sum(mul(y, g)));
  return { y: values, A: await numbers(gradients.get(A)!), B: await numbers(gradients.get(B)!), x: await numbers(gradients.get(x)!) };
}

const close = (found: readonly number[], expected: readonly number[], label: string): void => {
  expect(found.length).toBe(expected.length);
  found.forEach((value, i) => expect(value, `${label}[${i}]`).toBeCloseTo(expected[i]!, 11));
};

/** ‖(BA)ᵢ‖ from the whole product, number by number. */
async function rowNorms(A: Tensor, B: Tensor): Promise<number[]> {
  const [a, b] = [await numbers(A), await numbers(B)];
  const entry = (i: number, j: number): number => Array.from({ length: R }, (_, k) => b[i * R + k]! * a[k * IN + j]!).reduce((x, y) => x + y, 0);
  return Array.from({ length: OUT }, (_, i) => Math.hypot(...Array.from({ length: IN }, (_, j) => entry(i, j))));
}

describe("allora", () => {
  it("runs forward bit for bit as a LoRA with alpha = r", async () => {
    const p = leaves();
    expect((await pass(allora, {}, p)).y).toEqual((await pass(lora, {}, p)).y);
  });

  it("scales row i by 1/√(‖(BA)ᵢ‖ + 1/η²), which is η/√(1 + η²‖(BA)ᵢ‖): the norm, not its square, under the root", async () => {
    const { A, B } = leaves();
    const norms = await rowNorms(A, B);
    for (const squared of [1, 2, 4]) {
      const eta = Math.sqrt(squared);
      const a = await numbers(rowScale({ A, B }, squared));
      close(
        a,
        norms.map((norm) => eta / Math.sqrt(1 + squared * norm)),
        "a",
      );
      for (const value of a) expect(value > 0 && value <= eta).toBe(true);
      const order = norms.map((_, i) => i).sort((i, j) => norms[i]! - norms[j]!);
      for (let k = 1; k < OUT; k++) expect(a[order[k]!]!, "larger rows, smaller scale").toBeLessThan(a[order[k - 1]!]!);
    }
  });

  it("gives row i of B aᵢ times LoRA's gradient, A the gradient Bᵀ·diag(a)·gᵀ·x, and the input LoRA's own", async () => {
    const p = leaves();
    const [own, plain] = [await pass(allora, {}, p), await pass(lora, {}, p)];
    const a = (await rowNorms(p.A, p.B)).map((norm) => 1 / Math.sqrt(norm + 0.25));
    close(
      own.B,
      plain.B.map((value, k) => value * a[Math.floor(k / R)]!),
      "∇B",
    );
    const [b, g, x] = [await numbers(p.B), await numbers(p.g), await numbers(p.x)];
    const expected = Array.from({ length: R * IN }, (_, at) => {
      const [k, j] = [Math.floor(at / IN), at % IN];
      let total = 0;
      for (let row = 0; row < ROWS; row++) for (let i = 0; i < OUT; i++) total += b[i * R + k]! * a[i]! * g[row * OUT + i]! * x[row * IN + j]!;
      return total;
    });
    close(own.A, expected, "∇A");
    close(own.x, plain.x, "∇x");
  });

  it("starts with η times LoRA's gradient of B, and none of A", async () => {
    const p = leaves(0);
    const [own, plain] = [await pass(allora, { etaSquared: 2 }, p), await pass(lora, {}, p)];
    close(
      own.B,
      plain.B.map((value) => Math.SQRT2 * value),
      "∇B",
    );
    expect(own.A.every((value) => value === 0)).toBe(true);
  });

  it("is a LoRA at rate lr·η where η is small", async () => {
    const p = leaves();
    const [own, plain] = [await pass(allora, { etaSquared: 1e-12 }, p), await pass(lora, {}, p)];
    for (const key of ["A", "B"] as const)
      close(
        own[key].map((value) => value * 1e6),
        plain[key],
        key,
      );
  });

  it("by outputs (ALLoRA-OD) scales each sample's gradient by the size of its own update", async () => {
    const p = leaves();
    const own = await pass(allora, { scope: "outputs" }, p);
    const [A, B, g, x] = await Promise.all([p.A, p.B, p.g, p.x].map(numbers));
    const low = (row: number, k: number): number => Array.from({ length: IN }, (_, j) => A![k * IN + j]! * x![row * IN + j]!).reduce((s, v) => s + v, 0);
    const expected = Array.from({ length: OUT * R }, (_, at) => {
      const [i, k] = [Math.floor(at / R), at % R];
      let total = 0;
      for (let row = 0; row < ROWS; row++) {
        const h = Array.from({ length: R }, (_, q) => B![i * R + q]! * low(row, q)).reduce((s, v) => s + v, 0);
        total += (g![row * OUT + i]! / Math.sqrt(Math.abs(h) + 0.25)) * low(row, k);
      }
      return total;
    });
    close(own.B, expected, "∇B");
  });

  it("as ASF-LoRA scales the forward pass, and its update with it", async () => {
    const p = leaves();
    const o = parseOptions(allora, { r: R, asf: true });
    const [A, B] = [await numbers(p.A), await numbers(p.B)];
    const a = (await rowNorms(p.A, p.B)).map((norm) => 1 / Math.sqrt(norm + 0.25));
    const matrix = await numbers(noGrad(() => allora.update!(p, site, o, live(), {}).toDense()));
    close(
      matrix,
      Array.from({ length: OUT * IN }, (_, at) => {
        const [i, j] = [Math.floor(at / IN), at % IN];
        return a[i]! * Array.from({ length: R }, (_, k) => B[i * R + k]! * A[k * IN + j]!).reduce((s, v) => s + v, 0);
      }),
      "ΔW",
    );
  });

  it.each([
    [{ r: 2 }, {}],
    [{ r: 2, asf: true, etaSquared: 2 }, {}],
    [{ r: 4 }, { rankPattern: { v_proj: 1 } }],
  ])("is saved as a LoRA that gives the same without strut.json, %o %o", async (given, targeting) => {
    const model = await adapt(tinyModel(), allora, given, { targets: ["q_proj", "v_proj"], ...targeting });
    for (const { A, B } of attachedTo(model, "default")!.entries.values() as Iterable<{ A: Parameter; B: Parameter }>)
      for (const w of [A, B]) w.assign(tensor(sample(w.shape, w.size), w.shape));
    const logits = (of: Model): Promise<number[]> => numbers(noGrad(() => run(of, tensor([3, 1, 4], [1, 3], "i32"))));
    const own = await logits(model);
    expect(own).not.toEqual(await logits(tinyModel()));
    const folder = await mkdtemp(join(tmpdir(), "strut-allora-"));
    try {
      await saveAdapter(model, folder);
      const loaded = [await loadAdapter(tinyModel(), folder, { methods: [allora] })];
      await rm(join(folder, "strut.json"));
      loaded.push(await loadAdapter(tinyModel(), folder, { methods: [lora] }));
      for (const one of loaded) (await logits(one)).forEach((value, i) => expect(value).toBeCloseTo(own[i]!, 5));
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("refuses a forward pass scaled by outputs, which would be no matrix", () => {
    const o = parseOptions(allora, { r: R, asf: true, scope: "outputs" });
    expect(() => allora.init(site, o, { rng: new Rng(1), dtype: "f64", sites: [site] }, {})).toThrow(/not outputs of each sample/);
  });
});
