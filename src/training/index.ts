export type { EndReason, StepEvent, TrainingEvent } from "./events.ts";
export { train, type TrainResult } from "./loop.ts";
export { languageModelLoss } from "./loss.ts";
export type { CheckpointOptions, EvaluationOptions, TrainOptions } from "./options.ts";
export { constant, cosine, linear, scheduleNames, type ScheduleName } from "./schedules.ts";
