import { beforeAll, describe, expect, it } from "vitest";
import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import { Draw, type Call } from "./draw.ts";
import { entries } from "./entries.ts";
import { describeCall, difference, disagreement, expectedOf, runOn } from "./harness.ts";
import { machines, useThreads, type Machine } from "./machines.ts";

let present: Machine[];
let native: Machine[];

beforeAll(async () => {
  ({ present } = await machines());
  native = present.filter(({ backend }) => backend.name === "native");
});

describe("many threads", () => {
  it.each(["gemm", "attention", "attention_backward", "sum_squares", "layer_norm_backward"] as const)(
    "%s gives the same bits with 1, 3 and 32 threads, whose scratch is smaller",
    (name) => {
      const calls = Array.from({ length: 3 }, (_, i) => entries[name](new Draw(i * 131 + 17, { large: true })));
      useThreads(1);
      const alone = calls.map((call) => native.map((machine) => runOn(machine, call)));
      for (const threads of [3, 32]) {
        useThreads(threads);
        calls.forEach((call, i) =>
          native.forEach((machine, j) =>
            expect(difference(call, alone[i]![j]!, runOn(machine, call)), `${machine.label}, ${threads} threads: ${describeCall(call)}`).toBeUndefined(),
          ),
        );
      }
      useThreads(1);
    },
  );

  it("run every task of every job once, however few or many tasks follow each other", () => {
    // ten thousand pairs of jobs, of 2 and of 40 tasks: a late thread of the first must not take a task of the second
    const draw = new Draw(1);
    const [few, many] = [40_000, 640];
    const dim = 40;
    const table = draw.numbers(dim * 5);
    for (const machine of native.slice(-1)) {
      machine.reset();
      const memory = (elements: number, dtype: "f32" | "i32") => ({ dtype, block: machine.block(elements * 4), offset: 0 });
      const [x, y, rows, ids] = [memory(few, "f32"), memory(many * dim, "f32"), memory(table.length, "f32"), memory(many, "i32")];
      new Float32Array(rows.block.buffer!).set(table);
      const [filled, looked] = [new Float32Array(x.block.buffer!), new Float32Array(y.block.buffer!)];
      useThreads(8);
      let wrong = 0;
      for (let turn = 1; turn <= 10_000; turn++) {
        machine.backend.kernels.fill(x, turn, few);
        if (filled[0] !== turn || filled[few - 1] !== turn || filled[20_000] !== turn || filled[30_000] !== turn) wrong++;
        machine.backend.kernels.gather_rows(y, rows, ids, many, dim, 5);
        for (let task = 0; task < 40; task++) if (looked[task * 16 * dim] !== Math.fround(table[0]!)) wrong++;
        looked.fill(NaN);
      }
      useThreads(1);
      expect(wrong).toBe(0);
    }
  });
});

describe("order", () => {
  it("scatter_add_rows adds in order of n: the bits of one f32 addition after another", () => {
    for (let i = 0; i < 12; i++) {
      const call = entries.scatter_add_rows(new Draw(i * 7 + 1, { large: i > 9 }));
      const [table, g, ids, n, dim] = call.args as [{ values: Float32Array }, { values: Float32Array }, { values: Int32Array }, number, number];
      const sum = table.values.slice();
      (referenceKernels.scatter_add_rows as (...args: unknown[]) => void)(sum, g.values, ids.values, n, dim);
      for (const machine of present) expect(runOn(machine, call).get(call.args[0] as never), machine.label).toEqual(sum);
    }
  });

  it("uniform, normal and dropout give the same bits on every backend", () => {
    const draw = new Draw(5);
    const n = 100_003;
    const calls: Call[] = [
      [1, 2, 3],
      [-1, 2 ** 31 - 1, 0],
      [-(2 ** 31), 77, 123_456],
    ].flatMap((key) => [
      { kernel: "random_uniform", args: [draw.output(n), n, -0.3, 1.7, ...key] },
      { kernel: "random_normal", args: [draw.output(n), n, 0.1, 2.5, ...key] },
      { kernel: "dropout", args: [draw.output(n), draw.reals(n), n, 0.37, ...key] },
    ]);
    for (const call of calls) {
      const expected = expectedOf(call);
      for (const machine of present) expect(disagreement(call, expected, runOn(machine, call)), `${machine.label}: ${describeCall(call)}`).toBeUndefined();
    }
  });
});
