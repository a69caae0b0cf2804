import { expect, it } from "vitest";
import type { Measured } from "./job.ts";
import type { Plan } from "./plan.ts";
import { rowOf } from "./rows.ts";

const plan: Plan = { label: "lora", id: "lora", title: "LoRA", paper: "arXiv:2106.09685", options: {}, stored: 90 };
const measured: Measured = {
  validation: 3,
  loss: 3,
  tokens: 10,
  parameters: 90,
  bytes: 400,
  optimizerBytes: 720,
  peakBytes: 1e6,
  tensorBytes: 1e5,
  secondsPerStep: 0.1,
  seconds: 1,
  mergeable: true,
};
const noteOf = (parameters: number, limit: number): string | undefined =>
  rowOf(plan, { of: "parameters", limit }, [
    { job: { file: "", method: { id: "lora", options: {}, rate: 1e-3 }, seed: 0 }, measured: { ...measured, parameters } },
  ]).note;

it("notes a method that grew above the budget, and none that ended within it", () => {
  expect(noteOf(110, 100)).toBe("grew above the budget in training");
  expect(noteOf(100, 100)).toBeUndefined();
});
