import { beforeAll, describe, expect, it } from "vitest";
import { Draw, type Call } from "./draw.ts";
import { entries } from "./entries.ts";
import { describeCall, disagreement, expectedOf, runOn } from "./harness.ts";
import { machines, type Machine } from "./machines.ts";

let present: Machine[];

beforeAll(async () => {
  ({ present } = await machines(1));
});

function complaints(calls: Iterable<Call>): string {
  const found: string[] = [];
  for (const call of calls) {
    const expected = expectedOf(call);
    for (const machine of present) {
      const wrong = disagreement(call, expected, runOn(machine, call));
      if (wrong) found.push(`${machine.label}: ${describeCall(call)}\n    ${wrong}`);
    }
    if (found.length > 3) break;
  }
  return found.slice(0, 4).join("\n");
}

/** Whole numbers, so that every order of adding gives the same bits: nothing may differ. */
function* exact(real: "f32" | "f64", heights: readonly number[], widths: readonly number[], depths: readonly number[]): Generator<Call> {
  const draw = new Draw(9, { real });
  const whole = (n: number): number[] => Array.from({ length: n }, () => draw.integer(-4, 4));
  for (const m of heights)
    for (const n of widths)
      for (const k of depths) {
        const [beta, cRow] = [draw.one([0, 1, -2]), n + draw.one([0, 3])];
        const [a, b, c] = [whole(m * k), whole(k * n), whole(m * cRow)];
        for (let i = 0; i < c.length; i++) if (i % cRow >= n) c[i] = NaN;
        const [aStrides, bStrides] = [draw.one([[k, 1] as const, [1, m] as const]), draw.one([[n, 1] as const, [1, k] as const])];
        const out = beta === 0 ? draw.output(c.length, () => 0) : draw.inout(c, () => 0);
        const bias = draw.chance(0.3) ? draw.input(whole(n)) : null;
        yield {
          kernel: "gemm",
          args: [1, m, n, k, draw.one([1, 2]), draw.input(a), 0, ...aStrides, draw.input(b), 0, ...bStrides, beta, out, m * cRow, cRow, bias, "scratch"],
        };
      }
}

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1);

describe("gemm", () => {
  it("is exact on whole numbers at every height and width of a tile", () => {
    expect(complaints(exact("f32", upTo(26), [...upTo(36), 47, 48, 49, 50], [1, 3, 8]))).toBe("");
  });

  it("is exact on whole numbers in f64, too", () => {
    expect(complaints(exact("f64", upTo(13), [...upTo(18), 23, 24, 25], [1, 5]))).toBe("");
  });

  it("is exact on whole numbers where rows, columns and depth pass the ends of packed blocks", () => {
    expect(complaints(exact("f32", [95, 97, 191, 193], [127, 129, 385, 513], [255, 257]))).toBe("");
    expect(complaints(exact("f64", [97, 193], [129, 513], [257]))).toBe("");
  });

  it("agrees with the reference in f64 on native and WebAssembly", () => {
    expect(complaints(Array.from({ length: 63 }, (_, i) => entries.gemm(new Draw(i * 31 + 5, { real: "f64", large: i >= 60 }))))).toBe("");
  });
});
