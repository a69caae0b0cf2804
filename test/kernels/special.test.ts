import { beforeAll, describe, expect, it } from "vitest";
import { BINARY, UNARY } from "../../src/tensor/backends/signatures-core.ts";
import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import { Draw, type Call } from "./draw.ts";
import { entries } from "./entries.ts";
import { describeCall, disagreement, expectedOf, runOn } from "./harness.ts";
import { machines, type Machine } from "./machines.ts";

let present: Machine[];

beforeAll(async () => {
  ({ present } = await machines(1));
});

/** What is wrong with these calls anywhere, four complaints at most. */
function complaints(calls: readonly Call[]): string {
  const found: string[] = [];
  for (const call of calls)
    for (const machine of present) {
      let wrong: string | undefined;
      try {
        wrong = disagreement(call, expectedOf(call), runOn(machine, call));
      } catch (error) {
        wrong = (error as Error).message;
      }
      if (wrong && found.length < 4) found.push(`${machine.label}: ${describeCall(call)}\n    ${wrong}`);
    }
  return found.join("\n");
}

/** Kernels whose arithmetic in f32 and in f64 goes the same way through infinities, NaN, subnormal and huge numbers. */
const everywhere: KernelName[] = [
  "binary",
  "copy",
  "unary",
  "fill",
  "reduce_max",
  "gather_rows",
  "f32_to_bf16",
  "f32_to_f16",
  "bf16_to_f32",
  "f16_to_f32",
  "dropout",
];

describe("special values", () => {
  it.each(everywhere)("%s treats ±0, ±∞, NaN, subnormal and huge numbers as the reference does", (name) => {
    expect(complaints(Array.from({ length: 150 }, (_, i) => entries[name](new Draw(i * 7919 + 3, { special: true }))))).toBe("");
  });

  it.each(Object.entries(UNARY))("unary %s and its derivative have the values of the reference at every special number", (_, op) => {
    const specials = [
      0,
      -0,
      Infinity,
      -Infinity,
      NaN,
      1e-42,
      -1e-42,
      2 ** -149,
      2 ** -126,
      3.4e38,
      -3.4e38,
      1e20,
      -1e20,
      1e10,
      -1e10,
      -1e30,
      88.8,
      89.1,
      -87.5,
      -103.9,
      -104.5,
      20.5,
      -20.5,
    ].map(Math.fround);
    const calls: Call[] = [];
    for (const x of specials) {
      // seventeen copies, so that vectors and what is left over both meet them
      const draw = new Draw(1);
      const copies = (value: number) => draw.input(new Array<number>(17).fill(value));
      const grain = 2 ** -149 * Math.max(1, Math.abs(x));
      const allowed = (expected: number): number => Math.abs(expected) * 2 ** -20 + (Math.abs(x) < 200 ? grain + 1e-15 * Math.abs(x) : 0);
      const forward: Call = { kernel: "unary", args: [op, draw.output(17, allowed), copies(x), 17] };
      const y = Math.fround([...expectedOf(forward).values()][0]![0]!);
      calls.push(forward);
      // 1/√−0 is −∞ with a derivative of either sign; x² of geluTanh′ overflows beyond 1e19, as in torch
      if ((op === UNARY.rsqrt && Object.is(x, -0)) || (op === UNARY.geluTanh && Math.abs(x) > 1e19)) continue;
      calls.push({ kernel: "unary_backward", args: [op, draw.output(17, allowed), copies(x), copies(y), copies(1), 17] });
    }
    expect(complaints(calls)).toBe("");
  });

  it("comparisons and extremes order infinities, keep NaN and take equal zeros as equal", () => {
    const numbers = [0, -0, 1, -1, Infinity, -Infinity, NaN];
    const pairs = numbers.flatMap((a) => numbers.map((b) => [a, b] as const));
    const draw = new Draw(1);
    const n = pairs.length;
    const calls = Object.values(BINARY).map((op): Call => ({
      kernel: "binary",
      args: [op, draw.output(n, () => 0), draw.input(pairs.map(([a]) => a)), draw.input(pairs.map(([, b]) => b)), 1, 1, 1, n, 0, 0, 0, 1, 0, 0, 0, 1],
    }));
    expect(complaints(calls)).toBe("");
  });

  it("softmax and cross-entropy survive −1e30, −∞, huge and far apart logits, and carry NaN through", () => {
    const rows = [
      [0, -1e30, -Infinity, -1e30, 0],
      [1e30, -1e30, 0, 1, 2],
      [3e38, -3e38, 0, 0, 0],
      [-Infinity, -Infinity, -Infinity, -Infinity, 5],
      [100, 0, -100, -87, -104],
      [NaN, 0, 1, 2, 3],
      [0, 1, 2, 3, NaN],
      [-Infinity, -Infinity, -Infinity, -Infinity, -Infinity],
      [Infinity, 0, 0, 0, 0],
      [1e-42, -1e-42, 0, -0, 2 ** -149],
    ];
    // the reference subtracts log Σ exp from the logit, and at 1e30 all of the logarithm is lost
    const allowed = (expected: number, r: number): number => Math.abs(expected) * 2 ** -19 + 2 ** -21 + (Math.max(...rows[r]!) > 1e20 ? 4 : 0);
    const calls: Call[] = [];
    for (const repeat of [1, 3, 4, 13]) {
      const wide = rows.map((row) => Array.from({ length: repeat }, () => row).flat());
      const cols = wide[0]!.length;
      const draw = new Draw(1);
      const [x, size] = [draw.input(wide.flat()), rows.length * cols];
      calls.push({ kernel: "softmax", args: [draw.output(size, (expected) => Math.abs(expected) * 2 ** -19), x, rows.length, cols] });
      for (let target = 0; target < 5; target++)
        calls.push({
          kernel: "cross_entropy",
          args: [draw.output(rows.length, allowed), draw.output(rows.length, allowed), x, draw.integers(rows.map(() => target)), rows.length, cols],
        });
    }
    expect(complaints(calls)).toBe("");
  });

  it("equal logits cost the logarithm of their number, also where top + log n rounds to top", () => {
    for (const machine of present)
      for (const logit of [0, 5, -1e30, 3e38]) {
        const draw = new Draw(1);
        const losses = draw.output(1);
        const call: Call = {
          kernel: "cross_entropy",
          args: [losses, draw.output(1), draw.input(new Array<number>(37).fill(logit)), draw.integers([11]), 1, 37],
        };
        expect(runOn(machine, call).get(losses)![0], `${machine.label}, logits ${logit}`).toBeCloseTo(Math.log(37), 5);
      }
  });

  it("rows whose target is negative cost nothing, whatever their logits", () => {
    const draw = new Draw(1);
    const x = draw.input([NaN, Infinity, 1, -Infinity]);
    const targets = draw.integers([-1, -100]);
    expect(
      complaints([
        { kernel: "cross_entropy", args: [draw.output(2), draw.output(2), x, targets, 2, 2] },
        { kernel: "cross_entropy_backward", args: [draw.output(4), x, draw.reals(2), targets, draw.reals(2), 2, 2] },
      ]),
    ).toBe("");
  });

  it("a product carries NaN and ∞ to the rows and columns they belong to and no further", () => {
    const calls: Call[] = [];
    for (const [m, n, k] of [
      [1, 1, 1],
      [5, 17, 9],
      [13, 33, 40],
      [130, 130, 130],
      [3, 200, 300],
    ] as const)
      for (const special of [NaN, Infinity, -Infinity])
        for (const turned of [false, true]) {
          const draw = new Draw(m + n + k);
          const [a, b] = [draw.numbers(m * k), draw.numbers(k * n)];
          a[draw.integer(0, m * k - 1)] = special;
          b[draw.integer(0, k * n - 1)] = special;
          calls.push({
            kernel: "gemm",
            args: [
              1,
              m,
              n,
              k,
              1,
              draw.input(a),
              0,
              ...(turned ? ([1, m] as const) : ([k, 1] as const)),
              draw.input(b),
              0,
              ...(turned ? ([1, k] as const) : ([n, 1] as const)),
              0,
              draw.output(m * n, () => 1e-4),
              m * n,
              n,
              null,
              "scratch",
            ],
          });
        }
    expect(complaints(calls)).toBe("");
  });
});
