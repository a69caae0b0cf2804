import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadAdapter, lora, saveAdapter } from "../../src/adapters/index.ts";
import { openPeftDirectory, writePeftDirectory, type PeftDirectory } from "../../src/formats/index.ts";
import { randomModel } from "../../src/models/index.ts";
import { start, zeros } from "../../src/tensor/index.ts";

// Adapters that people published (data/NOTICE.md): one written by PEFT, one converted from loralib.
const gpt2 = "data/adapters/gpt2-lora-product-reviews/checkpoint-2500";
const roberta = "data/adapters/roberta-base-lora-mnli";
let folder = "";

beforeAll(async () => {
  await start();
  folder = await mkdtemp(join(tmpdir(), "strut-real-"));
});
afterAll(() => rm(folder, { recursive: true }));

const tensors = async ({ weights }: PeftDirectory) =>
  new Map(
    await Promise.all(
      [...weights.entries].map(
        async ([name, { dtype, shape }]) =>
          [
            name,
            {
              dtype,
              shape,
              sha256: createHash("sha256")
                .update(await weights.read(name))
                .digest("hex"),
            },
          ] as const,
      ),
    ),
  );

/** Settings that both say, without those that only one of them names, null meaning the default. */
async function settings(path: string): Promise<Record<string, unknown>> {
  const config = JSON.parse(await readFile(join(path, "adapter_config.json"), "utf8")) as Record<string, unknown>;
  return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null));
}

async function expectSame(before: string, after: string): Promise<void> {
  const [a, b] = [await openPeftDirectory(before), await openPeftDirectory(after)];
  expect(await tensors(b)).toEqual(await tensors(a));
  expect(await settings(after)).toMatchObject({ ...(await settings(before)), inference_mode: true });
  await Promise.all([a.close(), b.close()]);
}

describe("published adapters go load → save → load with equal tensors and an equivalent config", () => {
  it("the GPT-2 adapter, on a model of GPT-2's shape", async () => {
    const base = randomModel({ model_type: "gpt2", vocab_size: 50257, n_layer: 12, n_head: 12, n_embd: 768 }, (_, shape) => zeros(shape));
    const adapted = await loadAdapter(base, gpt2, { methods: [lora] });
    expect(adapted.adapters.get("default")!.entries.size).toBe(12);
    await saveAdapter(adapted, join(folder, "gpt2"));
    await expectSame(gpt2, join(folder, "gpt2"));
    await saveAdapter(await loadAdapter(base, join(folder, "gpt2"), { methods: [lora] }), join(folder, "gpt2-again"));
    await expectSame(gpt2, join(folder, "gpt2-again"));
  });

  it("the RoBERTa adapter, as a directory", async () => {
    const directory = await openPeftDirectory(roberta);
    const { weights, config } = directory;
    await writePeftDirectory(join(folder, "roberta"), {
      config,
      template: weights,
      tensors: [...weights.entries].map(([name, { dtype, shape }]) => ({ name, dtype, shape, bytes: () => weights.read(name) })),
    });
    await directory.close();
    await expectSame(roberta, join(folder, "roberta"));
  });
});
