import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import type { FileDType, SafetensorsFile } from "../formats/safetensors.ts";
import { cast, fromBytes, scope, type DType, type Tensor } from "../tensor/index.ts";

const floats: Partial<Record<FileDType, DType>> = { F64: "f64", F32: "f32", BF16: "bf16", F16: "f16" };
const configNames: Partial<Record<DType, string>> = { f64: "float64", f32: "float32", bf16: "bfloat16", f16: "float16" };

/** The dtype of stored floating-point numbers; undefined for everything else. */
export const floatDType = (stored: FileDType): DType | undefined => floats[stored];

export const fileDType = (dtype: DType): FileDType => dtype.toUpperCase() as FileDType;

/** A stored tensor of floating-point numbers as another dtype. `path` stands in messages. */
export async function readFloats({ entries, read }: Pick<SafetensorsFile, "entries" | "read">, name: string, dtype: DType, path: string): Promise<Tensor> {
  const { dtype: stored, shape } = entries.get(name)!;
  const known = floatDType(stored);
  if (!known) throw new StrutError("dtype", `${name} is stored as ${stored}; weights must be F32, F64, BF16 or F16`, { path });
  const bytes = await read(name);
  return scope(() => cast(fromBytes(bytes, shape, known), dtype));
}

const integers: Partial<Record<FileDType, DType>> = { I32: "i32", I64: "i64", U8: "u8", I8: "i8", BOOL: "bool" };

/** A stored tensor: floating-point numbers as `dtype`, integers as they are. */
export async function readTensor(file: Pick<SafetensorsFile, "entries" | "read">, name: string, dtype: DType, path: string): Promise<Tensor> {
  const { dtype: stored, shape } = file.entries.get(name)!;
  const integer = integers[stored];
  return integer ? fromBytes(await file.read(name), shape, integer) : readFloats(file, name, dtype, path);
}

/** config.json with the dtype that weights are stored in, under the key it uses: `dtype`, or `torch_dtype` in older files. */
export const withStoredDType = (config: Config, dtype: DType): Config => ({ ...config, ["dtype" in config ? "dtype" : "torch_dtype"]: configNames[dtype] });
