import { beforeAll, describe, expect, it } from "vitest";
import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import type { Block } from "../../src/tensor/backends/backend.ts";
import { Draw, type Call } from "./draw.ts";
import { entries } from "./entries.ts";
import { describeCall, difference, disagreement, expectedOf, runOn } from "./harness.ts";
import { machines, type Machine } from "./machines.ts";

let present: Machine[];

beforeAll(async () => {
  ({ present } = await machines(1));
});

describe("many threads", () => {
  it.each(["gemm", "attention", "attention_backward", "sum_squares", "layer_norm_backward"] as const)(
    "%s gives the same bits with 1, 3 and 32 threads, whose scratch is smaller",
    async (name) => {
      const calls = Array.from({ length: 3 }, (_, i) => entries[name](new Draw(i * 131 + 17, { large: true })));
      const alone = new Map((await machines(1)).present.map((machine) => [machine.label, calls.map((call) => runOn(machine, call))]));
      for (const threads of [3, 32])
        for (const machine of (await machines(threads)).present)
          calls.forEach((call, i) =>
            expect(
              difference(call, alone.get(machine.label)![i]!, runOn(machine, call)),
              `${machine.label}, ${threads} threads: ${describeCall(call)}`,
            ).toBeUndefined(),
          );
    },
  );

  it("run every task of every job once, however few or many tasks follow each other", async () => {
    // ten thousand pairs of jobs, of 2 and of 40 tasks: a late thread of the first must not take a task of the second
    const draw = new Draw(1);
    const [few, many] = [40_000, 640];
    const dim = 40;
    const table = draw.numbers(dim * 5);
    // one native variant and, where there is shared memory, WebAssembly
    for (const machine of (await machines(8)).present.slice(-2)) {
      machine.reset();
      const memory = (elements: number, dtype: "f32" | "i32") => ({ dtype, block: machine.block(elements * 4), offset: 0 });
      const [x, y, rows, ids] = [memory(few, "f32"), memory(many * dim, "f32"), memory(table.length, "f32"), memory(many, "i32")];
      const viewOf = ({ block }: { block: Block }): Float32Array => {
        const { buffer, byteOffset } = machine.backend.locate(block);
        return new Float32Array(buffer, byteOffset, block.bytes / 4);
      };
      viewOf(rows).set(table);
      const [filled, looked] = [viewOf(x), viewOf(y)];
      let wrong = 0;
      for (let turn = 1; turn <= 10_000; turn++) {
        machine.backend.kernels.fill(x, turn, few);
        if (filled[0] !== turn || filled[few - 1] !== turn || filled[20_000] !== turn || filled[30_000] !== turn) wrong++;
        machine.backend.kernels.gather_rows(y, rows, ids, many, dim, 5);
        for (let task = 0; task < 40; task++) if (looked[task * 16 * dim] !== Math.fround(table[0]!)) wrong++;
        looked.fill(NaN);
      }
      expect(wrong, machine.label).toBe(0);
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
