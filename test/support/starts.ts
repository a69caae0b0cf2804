import { attachedTo } from "../../src/adapters/index.ts";
import { forward, type Model } from "../../src/models/index.ts";
import { matmul, noGrad, tensor, transpose, type Parameter, type Tensor } from "../../src/tensor/index.ts";
import { numbers } from "./site.ts";

/** Two rows of 48 token ids below 501, and the same as a calibration batch. */
export const ids = [37, 91].map((step) => Array.from({ length: 48 }, (_, i) => 1 + ((i * step + (step % 7)) % 500)));
export const calibration = [{ ids }];

export const most = (values: readonly number[]): number => Math.max(...values.map(Math.abs));

/** Largest difference of two lists. */
export const apart = (a: readonly number[], b: readonly number[]): number => most(a.map((x, i) => x - b[i]!));

/** How far the logits of two language models are apart on `ids`. */
export async function moved(model: Model, from: Model): Promise<number> {
  const logits = (one: Model): Promise<number[]> => numbers(noGrad(() => forward(one, tensor(ids.flat(), [2, 48], "i32"))));
  return apart(await logits(model), await logits(from));
}

/** The parameters of the adapter "default" by site. */
export const parametersOf = (model: Model): Map<string, Record<string, Parameter>> => new Map(attachedTo(model, "default")!.entries as never);

/** Largest distance of M·Mᵀ from a diagonal matrix; from the identity by default. */
export async function defect(rows: Tensor, diagonal: (i: number) => number = () => 1): Promise<number> {
  const n = rows.shape[0]!;
  return most((await numbers(noGrad(() => matmul(rows, transpose(rows))))).map((x, at) => x - (at % (n + 1) === 0 ? diagonal(at / (n + 1)) : 0)));
}

/** The rank of every site. */
export const ranksOf = (model: Model): Record<string, number> => Object.fromEntries([...parametersOf(model)].map(([path, { A }]) => [path, A!.shape[0]!]));

/** A of every site. */
export const rowsOf = async (model: Model): Promise<Map<string, number[]>> =>
  new Map(await Promise.all([...parametersOf(model)].map(async ([path, { A }]) => [path, await numbers(A!)] as const)));
