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
  if (typeof targets === "string") return targets === module || pythonPattern(targets, "targetModules").fullmatch(module);
  return targets.some((target) => module.includes(target) || (/[\\^$*+?()[\]|]/.test(target) && pythonPattern(target, "targetModules").fullmatch(module)));
}
