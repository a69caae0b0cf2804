import type { StrutError } from "../errors.ts";
import type { Recipe } from "./schema.ts";

type Training = Recipe["training"];
type Choice = Pick<Training, "optimizer"> & Partial<Pick<Training, "optimizerOptions" | "innerOptimizer" | "innerOptions" | "updateInBackward">>;

const eightBit = { state: "8bit" };
/** As transformers sets it: with a rate of its own and no scaling by the size of the weights. */
const adafactor = { scaleParameter: false, relativeStep: false };
const galore: Readonly<Record<string, Choice>> = {
  galore_adamw: { optimizer: "galore" },
  galore_adamw_8bit: { optimizer: "galore", innerOptimizer: "adamw", innerOptions: eightBit },
  galore_adafactor: { optimizer: "galore", innerOptimizer: "adafactor", innerOptions: adafactor },
};

/** Names of transformers' TrainingArguments.optim, and what they are here. */
const choices: Readonly<Record<string, Choice>> = {
  adamw_torch: { optimizer: "adamw" },
  adamw_torch_fused: { optimizer: "adamw" },
  adamw_hf: { optimizer: "adamw-hf" },
  adamw_8bit: { optimizer: "adamw", optimizerOptions: eightBit },
  adamw_bnb_8bit: { optimizer: "adamw", optimizerOptions: eightBit },
  adafactor: { optimizer: "adafactor", optimizerOptions: adafactor },
  lion: { optimizer: "lion" },
  lion_32bit: { optimizer: "lion" },
  sgd: { optimizer: "sgd" },
  ...galore,
  // each weight moves as soon as its gradient is known
  ...Object.fromEntries(Object.entries(galore).map(([name, choice]) => [`${name}_layerwise`, { ...choice, updateInBackward: true }])),
};

/** "rank=64, scale=0.10" as options: numbers and booleans as such. */
function parsedArguments(text: string): Record<string, unknown> | undefined {
  const pairs = text.split(",").filter((pair) => pair.trim() !== "");
  const entries = pairs.map((pair): [string, unknown] | undefined => {
    const [, key, value] = /^\s*(\w+)\s*=\s*(\S+)\s*$/.exec(pair) ?? [];
    if (key === undefined || value === undefined) return undefined;
    return [
      key,
      value === "True" || value === "true" ? true : value === "False" || value === "false" ? false : Number.isNaN(Number(value)) ? value : Number(value),
    ];
  });
  return entries.every((entry) => entry !== undefined) ? Object.fromEntries(entries) : undefined;
}

/** The settings with transformers' `optim`, `optim_args` and `optim_target_modules` in our terms; its decay of 0 on matrices alone goes with them. */
export function withHuggingFaceOptimizer(training: Training, error: (message: string, hint: string) => StrutError): Training {
  const { optim, optimArgs, optimTargetModules } = training;
  if (optim === undefined) {
    if (optimArgs === undefined && optimTargetModules === undefined) return training;
    throw error("optimArgs and optimTargetModules go with optim, which is missing", "Name the optimiser, such as optim: galore_adamw.");
  }
  const choice = Object.hasOwn(choices, optim) ? choices[optim]! : undefined;
  if (!choice) throw error(`there is no optim ${JSON.stringify(optim)}`, `Known here are ${Object.keys(choices).join(", ")}.`);
  const given = parsedArguments(optimArgs ?? "");
  if (!given) throw error(`optimArgs is ${JSON.stringify(optimArgs)}`, 'Write it as "rank=64, update_proj_gap=100".');
  const targeted = Object.hasOwn(galore, optim.replace(/_layerwise$/, ""));
  if (targeted && optimTargetModules === undefined) throw error(`${optim} needs optimTargetModules`, 'For example ["attn", "mlp"].');
  if (!targeted && optimTargetModules !== undefined) throw error(`${optim} has no target modules`, "Leave out optimTargetModules.");
  const { weightDecay = 0 } = training;
  return {
    ...training,
    ...choice,
    weightDecay,
    decayOn: "matrices",
    optimizerOptions: { ...choice.optimizerOptions, ...given, ...(targeted ? { targetModules: optimTargetModules } : {}), ...training.optimizerOptions },
  };
}
