import { StrutError } from "../errors.ts";
import { writeFolderAtomically } from "../formats/files.ts";
import { copyCompanions, writeConfig } from "../formats/huggingface.ts";
import { writeSharded } from "../formats/safetensors-folder.ts";
import type { TensorToWrite } from "../formats/safetensors-write.ts";
import { cast, noGrad, scope, toBytes, type DType, type Tensor } from "../tensor/index.ts";
import type { Model } from "./model.ts";
import { fileDType, withStoredDType } from "./stored.ts";

export interface SaveOptions {
  /** Stored type of the weights; defaults to that of the tensors. */
  dtype?: "f32" | "bf16" | "f16";
  /** Largest file, in bytes; defaults to 5·10⁹ as transformers does. */
  maxShardBytes?: number;
  /** Replace what the folder holds. */
  overwrite?: boolean;
}

/** A tensor as it will stand in a file, converted when its turn comes. */
export function toWrite(name: string, tensor: Tensor, dtype: DType = tensor.dtype): TensorToWrite {
  return { name, dtype: fileDType(dtype), shape: tensor.shape, bytes: () => noGrad(() => scope(() => toBytes(cast(tensor, dtype)))) };
}

/** The weights of a model under their file names; a tied head is not written twice. */
export function weightsOf(model: Model, dtype?: DType): TensorToWrite[] {
  return [...model.layers.values()].flatMap(({ spec, weight, bias, buffers = {} }) => [
    ...(spec.tiedTo ? [] : [toWrite(`${spec.path}.weight`, weight, dtype)]),
    ...(bias ? [toWrite(`${spec.path}.bias`, bias, dtype)] : []),
    ...Object.entries(buffers).map(([name, buffer]) => toWrite(`${spec.path}.${name}`, buffer, dtype)),
  ]);
}

/**
 * Writes a model as a Hugging Face folder: config.json, safetensors, and the tokenizer and other companions of the folder
 * it came from. The folder appears whole or not at all. Adapters that are not merged are not written.
 */
export async function saveModel(model: Model, folder: string, { dtype, maxShardBytes, overwrite }: SaveOptions = {}): Promise<void> {
  const coded = [...model.layers.values()].find(({ quantized }) => quantized);
  if (coded)
    throw new StrutError("model", `${coded.spec.path} is quantised, and strut writes no such folders`, {
      path: folder,
      hint: "Save the model it was made from, and the adapter beside it.",
    });
  const stored = dtype ?? [...model.layers.values()][0]!.weight.dtype;
  await writeFolderAtomically(
    folder,
    async (temporary) => {
      await writeConfig(temporary, withStoredDType(model.config, stored));
      if (model.folder) await copyCompanions(model.folder, temporary);
      await writeSharded(temporary, weightsOf(model, dtype), maxShardBytes === undefined ? {} : { maxShardBytes });
    },
    { overwrite: overwrite ?? false },
  );
}
