export type { EndReason, MemoryEvent, StepEvent, TrainingEvent } from "./events.ts";
export { train, type TrainResult } from "./loop.ts";
export { classification, languageModelling, languageModelLoss, regression } from "./loss.ts";
export type { CheckpointOptions, EvaluationOptions, NamedGroup, OptimizerChoice, TrainOptions } from "./options.ts";
export { trainSmall, trainWithFewerHeads, type FewerHeadsOptions, type SmallOptions, type SmallResult } from "./stages.ts";
export * as schedules from "./schedules.ts";
export { scheduleNames, type ScheduleName } from "./schedules.ts";
