import { beforeAll, describe, expect, it } from "vitest";
import { signatures, type KernelName } from "../../src/tensor/backends/signatures.ts";
import { Draw, type Call } from "./draw.ts";
import { entries } from "./entries.ts";
import { describeCall, difference, disagreement, expectedOf, runOn, type Results } from "./harness.ts";
import { machines } from "./machines.ts";

const SMALL = 60;
const LARGE = 5;

beforeAll(async () => {
  for (const threads of [1, 2]) {
    const { present, missing } = await machines(threads);
    console.log(
      `with ${threads} threads kernels are tested on ${present.map(({ label }) => label).join(", ")}${missing.map((line) => `\nnot tested here: ${line}`).join("")}`,
    );
  }
});

const names = Object.keys(signatures) as KernelName[];

/** Calls drawn from seeds that the kernel's name starts, so that another kernel's entry does not change them. */
function callsOf(name: KernelName): { label: string; call: Call }[] {
  const first = Array.from(name).reduce((sum, char) => Math.imul(sum, 31) + char.charCodeAt(0), 7);
  return Array.from({ length: SMALL + LARGE }, (_, i) => {
    const call = entries[name](new Draw(first + i * 7919, { large: i >= SMALL }));
    return { label: `call ${i}: ${describeCall(call)}`, call };
  });
}

/** Runs all calls on all machines with 1 thread and with 2, and lists what went wrong, four complaints at most. */
async function complaints(name: KernelName): Promise<string[]> {
  const found: string[] = [];
  const alone = new Map<string, Results>();
  const calls = callsOf(name).map((one) => ({ ...one, expected: expectedOf(one.call) }));
  for (const threads of [1, 2]) {
    for (const machine of (await machines(threads)).present) {
      for (const { label, call, expected } of calls) {
        if (found.length >= 4) return found;
        const where = `${machine.label}, ${threads} threads, ${label}`;
        try {
          const results = runOn(machine, call);
          const wrong = disagreement(call, expected, results);
          if (wrong) found.push(`${where}\n    ${wrong}`);
          const before = alone.get(`${machine.label} ${label}`);
          const changed = before && difference(call, before, results);
          if (changed) found.push(`${where}\n    differs from 1 thread: ${changed}`);
          alone.set(`${machine.label} ${label}`, results);
        } catch (error) {
          found.push(`${where}\n    ${(error as Error).message}`);
        }
      }
    }
  }
  return found;
}

describe("compiled kernels", () => {
  it("have an entry each in this test", () => {
    expect(Object.keys(entries).sort()).toEqual([...names].sort());
  });

  it.each(names)("%s: agrees with the reference everywhere, touches only its outputs, and does not depend on threads", async (name) => {
    expect((await complaints(name)).join("\n")).toBe("");
  });
});
