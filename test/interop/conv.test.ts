import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { loadAdapter, merge, saveAdapter } from "../../src/adapters/index.ts";
import { adapters } from "../../src/catalog.ts";
import { openSafetensorsFile } from "../../src/formats/index.ts";
import { forward, type Model } from "../../src/models/index.ts";
import { noGrad, start, tensor, type Tensor } from "../../src/tensor/index.ts";
import { cnn } from "../support/cnn.ts";

// Adapters on convolutions, made by PEFT 0.21.0 (test/interop/peft/README.md).
const root = "test/interop/peft";
const cases = (await readdir(root)).filter((name) => name.startsWith("conv-") && name !== "conv-base");
let base: Model;
let images: Tensor;

type Nested = number | Nested[];
const flat = (x: Nested): number[] => (typeof x === "number" ? [x] : x.flatMap(flat));

beforeAll(async () => {
  await start();
  const file = await openSafetensorsFile(join(root, "conv-base/base.safetensors"));
  const weights = new Map<string, Tensor>();
  for (const [name, { shape }] of file.entries) weights.set(name, tensor(new Float32Array((await file.read(name)).slice().buffer), shape));
  await file.close();
  base = cnn(weights);
  const golden = JSON.parse(await readFile(join(root, "conv-base/base.json"), "utf8")) as { input: Nested; input_shape: number[]; output: Nested };
  images = tensor(flat(golden.input), golden.input_shape);
  expect(await outputDistance(base, golden.output), "the base itself").toBeLessThan(1e-5);
});

async function outputDistance(model: Model, expected: Nested): Promise<number> {
  const y = (await noGrad(() => forward(model, images)).data()) as Float32Array;
  return flat(expected).reduce((most, value, i) => Math.max(most, Math.abs(value - y[i]!)), 0);
}

const distance = async (model: Model, name: string): Promise<number> =>
  outputDistance(model, (JSON.parse(await readFile(join(root, name, "expected.json"), "utf8")) as { adapted_output: Nested }).adapted_output);

describe("adapters of the real PEFT on convolutions", () => {
  it.each(cases)("%s: adapted and merged outputs within 1e-5 of PEFT's, after saving and loading too", async (name) => {
    const methods = await adapters();
    const adapted = await loadAdapter(base, join(root, name), { methods });
    expect(await distance(adapted, name)).toBeLessThan(1e-5);
    if (name === "conv-lora") expect(() => merge(adapted)).toThrow(/the convolution has 2 groups, and A reads all of them/);
    else expect(await distance(merge(adapted), name), "merged").toBeLessThan(1e-5);
    const folder = await mkdtemp(join(tmpdir(), "strut-conv-"));
    try {
      await saveAdapter(adapted, join(folder, "a"));
      expect(await distance(await loadAdapter(base, join(folder, "a"), { methods }), name), "again").toBeLessThan(1e-5);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
