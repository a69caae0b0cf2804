import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { backward, linear, mul, noGrad, Parameter, Rng, start, sum, tensor, type Tensor } from "../tensor/index.ts";
import { dora } from "./dora.ts";
import { dropInput } from "./lora.ts";

beforeAll(async () => {
  await start();
});

const [OUT, IN, R] = [5, 4, 2];
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

/** A site with values drawn, its method's parameters, and options of scale 1.5. */
async function made(given: object = {}) {
  const [w, bias] = [leaf([OUT, IN], 1), leaf([OUT], 2)];
  const site: Site = { path: "q_proj", depth: 0, role: "q_proj", kind: "linear", out: OUT, in: IN, weight: dense(w), bias };
  const o = parseOptions(dora, { r: R, alpha: 1.5 * R, ...given });
  const live: Live = { training: false, step: 0, rng: new Rng(4), values: {} };
  const start = noGrad(
    () =>
      dora.init(
        site,
        o,
        {
          rng: new Rng(3),
          dtype: "f64",
          sites: [],
        },
        {},
      ) as { A: Tensor; B: Tensor; m: Tensor },
  );
  const p = { A: new Parameter(start.A, "A"), B: new Parameter(start.B, "B"), m: new Parameter(start.m, "m") };
  const forward = (x: Tensor): Tensor => dora.forward!(x, linear(x, w, bias), p, site, o, live, {});
  return { w, bias, site, o, live, p, forward, weights: await numbers(w) };
}

const norms = (w: readonly number[]): number[] => Array.from({ length: OUT }, (_, i) => Math.hypot(...w.slice(i * IN, (i + 1) * IN)));

/** W + 1.5·B·A in plain numbers. */
const direction = (w: readonly number[], b: readonly number[], a: readonly number[]): number[] =>
  w.map((value, at) => {
    const [i, j] = [Math.floor(at / IN), at % IN];
    let total = value;
    for (let k = 0; k < R; k++) total += 1.5 * b[i * R + k]! * a[k * IN + j]!;
    return total;
  });

const put = (p: Parameter, values: readonly number[]): void => p.assign(tensor(values, p.shape, "f64"));

describe("dora", () => {
  it("starts with the row norms of W as magnitudes, and with W exactly", async () => {
    const { p, weights, site, o, live } = await made();
    (await numbers(p.m)).forEach((value, i) => expect(value).toBeCloseTo(norms(weights)[i]!, 12));
    expect((await numbers(dora.update!(p, site, o, live, {}).toDense())).every((value) => value === 0)).toBe(true);
  });

  it("has row norms m whatever B·A is, B·A = 0 included, and turns rows only by B·A", async () => {
    const { p, weights, site, o, live } = await made();
    const m = sample([OUT], 9).map((value) => Math.abs(value) + 0.5);
    put(p.m, m);
    for (const b of [Array<number>(OUT * R).fill(0), sample([OUT, R], 7)]) {
      put(p.B, b);
      const merged = (await numbers(dora.update!(p, site, o, live, {}).toDense())).map((value, i) => value + weights[i]!);
      norms(merged).forEach((value, i) => expect(value).toBeCloseTo(m[i]!, 12));
      const v = direction(weights, b, await numbers(p.A));
      merged.forEach((value, at) => expect(value).toBeCloseTo((m[Math.floor(at / IN)]! * v[at]!) / norms(v)[Math.floor(at / IN)]!, 12));
    }
  });

  it("leaves the bias alone: it is neither scaled nor dropped", async () => {
    const { p, bias, forward } = await made();
    put(p.m, sample([OUT], 9));
    put(p.B, sample([OUT, R], 7));
    const y = await numbers(forward(tensor(Array<number>(IN).fill(0), [1, IN], "f64")));
    (await numbers(bias)).forEach((value, i) => expect(y[i]).toBeCloseTo(value, 12));
  });

  it("gives A, B and m the gradients of W' with the norm held constant", async () => {
    const { p, weights, forward, bias } = await made();
    put(p.B, sample([OUT, R], 7));
    const [x, c] = [sample([3, IN], 8), sample([3, OUT], 11)];
    const gradients = backward(sum(mul(forward(tensor(x, [3, IN], "f64")), tensor(c, [3, OUT], "f64"))));
    const values = { A: await numbers(p.A), B: await numbers(p.B), m: await numbers(p.m) };
    const frozen = norms(direction(weights, values.B, values.A));
    const b0 = await numbers(bias);
    const loss = ({ A, B, m }: typeof values): number => {
      const v = direction(weights, B, A);
      return c.reduce((total, factor, at) => {
        const [row, i] = [Math.floor(at / OUT), at % OUT];
        let y = 0;
        for (let j = 0; j < IN; j++) y += x[row * IN + j]! * v[i * IN + j]!;
        return total + factor * ((m[i]! / frozen[i]!) * y + b0[i]!);
      }, 0);
    };
    for (const name of ["A", "B", "m"] as const) {
      const found = await numbers(gradients.get(p[name])!);
      for (const [i, analytic] of found.entries()) {
        const at = (step: number): number => loss({ ...values, [name]: values[name].map((value, k) => (k === i ? value + step : value)) });
        expect(analytic, `${name}[${i}]`).toBeCloseTo((at(1e-5) - at(-1e-5)) / 2e-5, 7);
      }
    }
  });

  it("shows the dropped input to the base's part too, in training with dropout only", async () => {
    const { p, weights, forward, live, o, site, w, bias } = await made({ dropout: 0.5 });
    put(p.B, sample([OUT, R], 7));
    put(p.m, sample([OUT], 9));
    const x = tensor(sample([2, IN], 8), [2, IN], "f64");
    live.training = true;
    const [y, plain, dropped] = await Promise.all([forward(x), linear(x, w, bias), dropInput(x, o, site, live)].map(numbers));
    expect(dropped).not.toEqual(await numbers(x));
    const v = direction(weights, await numbers(p.B), await numbers(p.A));
    const [m, length] = [await numbers(p.m), norms(v)];
    y!.forEach((value, at) => {
      const [row, i] = [Math.floor(at / OUT), at % OUT];
      let expected = plain![at]!;
      for (let j = 0; j < IN; j++) expected += dropped![row * IN + j]! * ((m[i]! / length[i]!) * v[i * IN + j]! - weights[i * IN + j]!);
      expect(value).toBeCloseTo(expected, 12);
    });
  });

  it("gives a row of zeros gain m: nothing becomes NaN, and the row can grow", async () => {
    const { p, w, site, o, live } = await made();
    const weights = (await numbers(w)).map((value, at) => (at < IN ? 0 : value));
    put(w, weights);
    put(p.m, norms(weights));
    for (const value of await numbers(dora.update!(p, site, o, live, {}).toDense())) expect(value).toBeCloseTo(0, 12);
    put(
      p.m,
      norms(weights).map((value) => value + 1),
    );
    put(p.B, sample([OUT, R], 7));
    const grown = await numbers(dora.update!(p, site, o, live, {}).toDense());
    expect(Math.hypot(...grown.slice(0, IN))).toBeCloseTo(1, 12);
  });
});
