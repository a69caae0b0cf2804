/** What a run tells while it goes on: plain objects, one JSON line each. Steps count from 1, times are seconds. */
export type TrainingEvent =
  | {
      readonly event: "start";
      readonly steps: number;
      readonly step: number;
      readonly parameters: number;
      readonly tensors: number;
      readonly backend: string;
      readonly cpu: string;
      readonly seed: number;
      readonly resumed?: string;
    }
  | StepEvent
  | { readonly event: "evaluation"; readonly step: number; readonly loss: number; readonly perplexity: number; readonly tokens: number; readonly best: boolean }
  | { readonly event: "checkpoint"; readonly step: number; readonly path: string }
  | { readonly event: "warning"; readonly message: string }
  | { readonly event: "end"; readonly step: number; readonly reason: EndReason; readonly loss: number; readonly seconds: number; readonly tokens: number };

export interface StepEvent {
  readonly event: "step";
  readonly step: number;
  readonly steps: number;
  readonly epoch: number;
  /** The task's loss, the mean over the step's batches. */
  readonly loss: number;
  /** What regimes added to it, if any did. */
  readonly extraLoss?: number;
  /** Before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Tokens trained on so far, in this process. */
  readonly tokens: number;
  readonly tokensPerSecond: number;
  readonly timeLeft: number;
}

export type EndReason = "finished" | "stopped" | "early-stopping";
