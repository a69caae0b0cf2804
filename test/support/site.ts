import { loadAdapter, saveAdapter, type Adapter } from "../../src/adapters/index.ts";
import { openSafetensorsFile } from "../../src/formats/safetensors-folder.ts";
import type { Model } from "../../src/models/index.ts";
import { randomModel } from "../../src/models/index.ts";
import type { Site } from "../../src/nn/contracts.ts";
import { dense } from "../../src/operators/index.ts";
import { Rng, type Tensor } from "../../src/tensor/index.ts";
import { inFolder } from "../laws/scaffolds.ts";

/** A linear site on its own, with a weight [out, in]. */
export const linearSite = (weight: Tensor, path = "model.layers.0.self_attn.o_proj"): Site => ({
  path,
  depth: 0,
  role: path.split(".").at(-1)!,
  kind: "linear",
  out: weight.shape[0]!,
  in: weight.shape[1]!,
  weight: dense(weight),
});

/** A ResNet of two stages with random weights. */
export const tinyResnet = (): Model =>
  randomModel(
    { architectures: ["ResNet"], model_type: "resnet-cifar", blocks_per_stage: [1, 1], widths: [8, 12], num_labels: 5, num_channels: 3 },
    (name, shape) => new Rng(4).fork(name).normal(shape, 0.3, "f64"),
    { dtype: "f64" },
  );

/** The model's adapter after saving and loading onto the base, and the names of the tensors that were in the file. */
export const reloaded = (base: Model, model: Model, method: unknown): Promise<{ model: Model; names: string[] }> =>
  inFolder(async (folder) => {
    await saveAdapter(model, folder);
    const file = await openSafetensorsFile(`${folder}/adapter_model.safetensors`);
    const names = [...file.entries.keys()];
    await file.close();
    return { model: await loadAdapter(base, folder, { methods: [method as Adapter] }), names };
  });
