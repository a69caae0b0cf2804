import { beforeAll, describe, expect, it } from "vitest";
import { f64Kernels } from "../../src/tensor/backends/signatures.ts";
import { Draw } from "./draw.ts";
import { entries } from "./entries.ts";
import { describeCall, disagreement, expectedOf, runOn } from "./harness.ts";
import { machines, type Machine } from "./machines.ts";

let present: Machine[];

beforeAll(async () => {
  ({ present } = await machines(2));
});

describe("kernels with an f64 form", () => {
  it.each([...f64Kernels])("%s agrees with the reference in f64", (name) => {
    const found: string[] = [];
    for (let i = 0; i < 65; i++) {
      const call = entries[name](new Draw(i * 104729 + 11, { real: "f64", large: i >= 60 }));
      const expected = expectedOf(call);
      for (const machine of present) {
        const wrong = disagreement(call, expected, runOn(machine, call));
        if (wrong && found.length < 4) found.push(`${machine.label}: ${describeCall(call)}\n    ${wrong}`);
      }
    }
    expect(found.join("\n")).toBe("");
  });
});
