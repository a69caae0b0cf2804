import { z } from "zod";
import { pythonPattern } from "../formats/peft-regexp.ts";
import type { TransformContext } from "../nn/contracts.ts";
import type { Parameter } from "../tensor/index.ts";

/** Which matrices an optimiser treats in its own way; others get the ordinary rule. */
export const targetModules = z
  .union([z.string(), z.array(z.string()).min(1)])
  .default(["attn", "mlp"])
  .describe('modules whose matrices are treated: parts of their paths, a pattern for whole paths, or all-linear; defaults to ["attn", "mlp"]');

/** Whether a parameter is a matrix (or a convolution's kernel) of a module that was named, by the rule of transformers' optim_target_modules. */
export function isTarget(targets: string | readonly string[], w: Parameter, { sites }: Pick<TransformContext, "sites">): boolean {
  if (w.shape.length < 2) return false;
  const module = w.name.replace(/\.[^.]*$/, "");
  if (targets === "all-linear") return sites.some(({ path, kind }) => kind !== "embedding" && (module === path || module.startsWith(`${path}.`)));
  return isNamed(targets, module);
}

/** Whether a pattern is that of the whole path, or one of several names is a part of it or such a pattern. */
export function isNamed(names: string | readonly string[], path: string, option = "targetModules"): boolean {
  if (typeof names === "string") return names === path || pythonPattern(names, option).fullmatch(path);
  return names.some((name) => path.includes(name) || (/[\\^$*+?()[\]|]/.test(name) && pythonPattern(name, option).fullmatch(path)));
}
