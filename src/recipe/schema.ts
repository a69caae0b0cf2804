import { z } from "zod";
import { pruneOptions } from "../models/index.ts";
import { scheduleNames } from "../training/index.ts";

const names = z.union([z.string(), z.array(z.string())]);
const numbersByName = z.record(z.string(), z.number());
const positive = z.number().positive();

const data = z.strictObject({
  text: z.string().describe("text file to train on, read as one string"),
  heldOut: z.number().min(0).lt(1).default(0.1).describe("share of the text, from its end, that is evaluated and never trained on; defaults to 0.1"),
  window: z.int().min(2).optional().describe("tokens of a row, in training and evaluation; defaults to the model's context, at most 512"),
});

const earlyStopping = z.strictObject({
  patience: z.int().positive().describe("evaluations in a row that may pass without a better loss"),
  minDelta: z.number().nonnegative().default(0).describe("how much lower a loss must be to count as better; defaults to 0"),
});

const group = z.strictObject({
  match: names.describe("parts of parameter names, or patterns for whole names; the first group that matches counts"),
  learningRate: z.number().nonnegative().optional().describe("in place of the run's"),
  learningRateFactor: z.number().nonnegative().optional().describe("on the run's"),
  weightDecay: z.number().nonnegative().optional().describe("in place of the run's"),
});

const training = z.strictObject({
  steps: z.int().nonnegative().optional().describe("optimiser steps; defaults to one epoch"),
  epochs: positive.optional().describe("times the text is seen, in place of steps"),
  batchSize: z.int().positive().default(8).describe("rows of a batch; defaults to 8"),
  accumulate: z.int().positive().default(1).describe("batches whose gradients are averaged in a step; defaults to 1"),
  optimizer: z.string().default("adamw").describe("id of an optimiser (strut methods); defaults to adamw"),
  optimizerOptions: z.record(z.string(), z.unknown()).default({}).describe("its options, such as betas"),
  innerOptimizer: z.string().optional().describe("id of the optimiser inside one that wraps another, such as adafactor in galore; defaults to its own"),
  innerOptions: z.record(z.string(), z.unknown()).default({}).describe("options of that"),
  optim: z.string().optional().describe("in place of optimizer: a name of transformers' TrainingArguments, such as galore_adamw_8bit"),
  optimArgs: z.string().optional().describe('its options as transformers writes them: "rank=64, update_proj_gap=100, scale=0.10"'),
  optimTargetModules: names.optional().describe("with optim: modules whose matrices it projects"),
  learningRate: z.number().nonnegative().optional().describe("defaults to the optimiser's"),
  weightDecay: z.number().nonnegative().optional().describe("defaults to the optimiser's"),
  schedule: z
    .enum(scheduleNames)
    .default("linear")
    .describe(`how the rate falls after warm-up: ${scheduleNames.join(", ")}; defaults to linear`),
  scheduleOptions: z.record(z.string(), z.unknown()).default({}).describe("options of the schedule, such as minRate or cycles"),
  warmup: z.number().nonnegative().default(0).describe("steps over which the rate rises from 0; below 1 a share of all steps; defaults to 0"),
  clip: positive.optional().describe("largest norm of all gradients together; defaults to no clipping"),
  groups: z.array(group).default([]).describe("parameters, by name, with a learning rate or decay of their own"),
  decayOn: z
    .enum(["all", "matrices"])
    .default("all")
    .describe("what weightDecay pulls on: all, as torch does, or matrices, as transformers does; defaults to all"),
  ema: z
    .strictObject({ decay: z.number().min(0).lt(1).describe("share of the old average that is kept at a step") })
    .optional()
    .describe("average the weights: evaluations and the result have the averages"),
  clipValue: positive.optional().describe("largest size of a single number of a gradient; defaults to no limit"),
  stochasticRounding: z.boolean().default(false).describe("keep trained weights on the grid of bf16, rounded at random without bias; defaults to false"),
  evaluateEvery: z.int().positive().optional().describe("steps between evaluations on the held-out text; defaults to one at the end"),
  checkpointEvery: z.int().positive().optional().describe("steps between checkpoints; defaults to one at the end"),
  keepCheckpoints: z.int().positive().default(2).describe("how many of the newest stay, beside the best; defaults to 2"),
  earlyStopping: earlyStopping.optional().describe("end the run when the held-out loss no longer falls"),
  recompute: z.boolean().default(false).describe("compute intermediates again in backward: less memory, a third more time; defaults to false"),
  updateInBackward: z.boolean().default(false).describe("move each weight as soon as its gradient is known: less memory, same result; defaults to false"),
  seed: z.int().nonnegative().default(0).describe("where all random numbers start; defaults to 0"),
});

const align = z.strictObject({
  steps: z.int().positive().describe("optimiser steps of continued training of the small base, before the adapter"),
  text: z.string().describe("text for it, of the kind that the base learnt from: on the text of the task the small base would learn what the adapter should"),
  learningRate: z.number().nonnegative().default(5e-5).describe("defaults to 5e-5"),
  schedule: z.enum(scheduleNames).default("cosine").describe("how the rate falls; defaults to cosine"),
  warmup: z.number().nonnegative().default(0.1).describe("steps over which the rate rises; below 1 a share of them; defaults to 0.1"),
});

const { seed: _, ...pruning } = pruneOptions.shape;

const prune = z.strictObject({
  ...pruning,
  from: z
    .string()
    .optional()
    .describe("folder that an earlier run wrote (pruned), taken as it is: the other keys of how to prune and align have no meaning then"),
  calibrationBatches: z.int().positive().default(8).describe("batches of the text whose gradients say what is important; defaults to 8"),
  align: align.optional().describe("continued training of the small base"),
  quantize: z.literal("nf4").optional().describe("keep the small base in 4 bits while the adapter trains; defaults to full precision"),
  fill: z.enum(["zero", "normal"]).default("zero").describe("what the cut columns of A get: zero, or N(0, 1/8²); defaults to zero"),
});

const removeHeads = z.strictObject({
  count: z.int().positive().describe("heads of each block that go; with grouped queries key/value heads"),
  score: z.enum(["ABS", "WABS"]).default("ABS").describe("keep heads that are large in the update, or in |W| and the update; defaults to ABS"),
  at: z.number().gt(0).lt(1).default(0.5).describe("share of training.steps before it; defaults to 0.5"),
});

/** What a recipe holds. Keys are camelCase; snake_case is read too, and PEFT's names of what PEFT has. */
export const recipeSchema = z.strictObject({
  model: z.string().describe("folder of the base model; from scratch its config.json alone will do"),
  fromScratch: z.boolean().default(false).describe("start from random weights in place of the model's; defaults to false"),
  tokenizer: z.string().optional().describe("folder of the tokenizer; defaults to the model's"),
  data: data.describe("what is trained on"),
  method: z
    .string()
    .default("lora")
    .describe("id of an adapter method (strut methods), or full to train every weight; defaults to lora, and from scratch to full"),
  options: z.record(z.string(), z.unknown()).default({}).describe("the method's options (strut methods ID)"),
  initializer: z.string().optional().describe("id of what starts the adapter, such as eva or lora-sb; defaults to the method's own start"),
  initializerOptions: z.record(z.string(), z.unknown()).default({}).describe("its options"),
  calibrationBatches: z
    .int()
    .positive()
    .default(16)
    .describe("batches of the training text that a start, or a method that measures, may look at; defaults to 16"),
  targets: names.optional().describe("modules to adapt: names, a pattern, or all-linear; defaults to PEFT's for the model type"),
  excludeModules: names.optional().describe("modules that are left alone"),
  layersToTransform: z
    .union([z.int(), z.array(z.int())])
    .optional()
    .describe("indices of the layers to adapt; defaults to all"),
  layersPattern: names.optional().describe("name of the list of layers, for layersToTransform"),
  rankPattern: numbersByName.optional().describe("rank by module pattern, where it differs"),
  alphaPattern: numbersByName.optional().describe("alpha by module pattern, where it differs"),
  bias: z.enum(["none", "all", "lora_only"]).optional().describe("which biases of the base train too; defaults to none"),
  modulesToSave: z.array(z.string()).optional().describe("modules that train whole, beside the adapter"),
  trainableTokenIndices: z
    .union([z.array(z.int()), z.record(z.string(), z.array(z.int()))])
    .optional()
    .describe("token ids whose embedding rows train"),
  ensureWeightTying: z.boolean().optional().describe("adapt tied embedding and head together; defaults to false"),
  layerReplication: z
    .array(z.tuple([z.int(), z.int()]))
    .optional()
    .describe("ranges of layers that make up a deeper model"),
  training: training.prefault({}).describe("how it is trained"),
  prune: prune.optional().describe("train on a smaller base, and write the adapter for the full one (LoRAM); method loram or lora"),
  removeHeads: removeHeads.optional().describe("remove attention heads on the way (DSEE); method dsee or lora"),
  merge: z.boolean().default(false).describe("write the merged model too; defaults to false"),
});

/** A recipe with its defaults filled in. */
export type Recipe = z.output<typeof recipeSchema>;

/** PEFT's names for keys of a recipe. */
export const recipeAliases: Readonly<Record<string, string>> = { target_modules: "targets", targetModules: "targets" };
