import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadAdapter, type Adapter } from "../../src/adapters/index.ts";
import { writeSafetensors } from "../../src/formats/index.ts";
import type { Model } from "../../src/models/index.ts";
import { toWrite } from "../../src/models/save.ts";
import type { Tensor } from "../../src/tensor/index.ts";

/** A folder with tensors under another code's keys, and a strut.json written by hand, loaded on a base. */
export async function loadPublished(base: Model, method: unknown, options: object, tensors: Readonly<Record<string, Tensor>>): Promise<Model> {
  const dir = await mkdtemp(join(tmpdir(), "strut-published-"));
  try {
    const { id } = method as Adapter;
    await writeFile(join(dir, "strut.json"), JSON.stringify({ format: "strut-adapter", version: 1, method: id, options, targets: [] }));
    await writeSafetensors(
      join(dir, "adapter_model.safetensors"),
      Object.entries(tensors).map(([name, x]) => toWrite(name, x)),
    );
    return await loadAdapter(base, dir, { methods: [method as Adapter] });
  } finally {
    await rm(dir, { recursive: true });
  }
}
