import { StrutError } from "../errors.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { writeSafetensors } from "../formats/safetensors-write.ts";
import type { Model } from "../models/model.ts";
import { toWrite } from "../models/save.ts";
import { readTensor } from "../models/stored.ts";
import type { Site } from "../nn/contracts.ts";
import { hostNumbers, noGrad, reshape } from "../tensor/index.ts";
import type { EvaFound } from "./eva.ts";

/**
 * Writes A of every site as `<module>.eva` [rank, in] into one safetensors file: right after EVA started the adapter these are its
 * components, which `state` reads again.
 *
 * @example
 * await saveEvaState(tuned, "components.safetensors");
 */
export async function saveEvaState(model: Model, file: string, { name = model.active[0] ?? "default" }: { name?: string } = {}): Promise<void> {
  const entries = [...(model.adapters.get(name)?.entries ?? [])];
  if (!entries.some(([, { A }]) => A))
    throw new StrutError("adapter", `the model has no adapter named ${name} with factors A`, { hint: "Save the components of an adapter that EVA started." });
  const tensors = entries.flatMap(([path, { A }]) =>
    A
      ? [
          toWrite(
            `${path}.eva`,
            noGrad(() => reshape(A, [A.shape[0]!, A.size / A.shape[0]!])),
          ),
        ]
      : [],
  );
  await writeSafetensors(file, tensors);
}

/** Components and ranks from a file. Sites that it does not have had rank 0; components of another model end in a sentence. */
export async function readEvaState(path: string, sites: readonly Site[]): Promise<EvaFound> {
  const file = await openSafetensorsFile(path);
  try {
    const ranks = new Map<string, number>();
    const rows = new Map<string, ArrayLike<number>>();
    for (const { path: module, in: inner } of sites) {
      const key = `${module}.eva`;
      const shape = file.entries.get(key)?.shape;
      ranks.set(module, shape?.[0] ?? 0);
      if (!shape) continue;
      if (shape.length !== 2 || shape[1] !== inner)
        throw new StrutError("files", `${path} has [${shape}] as ${key}, expected rows of ${inner} features`, {
          path: "state",
          hint: "Give the components of this model.",
        });
      rows.set(module, hostNumbers(await readTensor(file, key, "f64", path)) as Float64Array);
    }
    if (rows.size === 0)
      throw new StrutError("files", `${path} has components of none of the targets`, { path: "state", hint: "Its tensors are named <module>.eva." });
    return { ranks, warnings: [], rows };
  } finally {
    await file.close();
  }
}
