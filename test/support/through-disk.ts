import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadAdapter, saveAdapter, type Adapter } from "../../src/adapters/index.ts";
import { openSafetensorsFile } from "../../src/formats/index.ts";
import type { Model } from "../../src/models/index.ts";

/** Saves the active adapter and loads it on a base: the model, and what the folder held. */
export async function throughDisk(
  model: Model,
  base: Model,
  // oxlint-disable-next-line typescript/no-explicit-any -- a method of any options
  methods: readonly Adapter<any, any, any>[],
): Promise<{ loaded: Model; shapes: Map<string, readonly number[]>; json: Record<string, Record<string, unknown>> }> {
  const dir = await mkdtemp(join(tmpdir(), "strut-adapter-"));
  try {
    await saveAdapter(model, dir);
    const file = await openSafetensorsFile(join(dir, "adapter_model.safetensors"));
    const shapes = new Map([...file.entries].map(([name, { shape }]) => [name, shape]));
    await file.close();
    const names = (await readdir(dir)).filter((name) => name.endsWith(".json"));
    const json: Record<string, Record<string, unknown>> = {};
    for (const name of names) json[name] = JSON.parse(await readFile(join(dir, name), "utf8")) as Record<string, unknown>;
    return { loaded: await loadAdapter(base, dir, { methods: methods as readonly Adapter[] }), shapes, json };
  } finally {
    await rm(dir, { recursive: true });
  }
}
