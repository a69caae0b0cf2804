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
  | {
      readonly event: "evaluation";
      readonly step: number;
      readonly loss: number;
      /** exp(loss), of language modelling. */
      readonly perplexity?: number;
      readonly tokens: number;
      readonly best: boolean;
    }
  | MemoryEvent
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

/** Bytes of the first step of a run, or of the first after a resume. */
export interface MemoryEvent {
  readonly event: "memory";
  /** All parameters, trained or not. */
  readonly weights: number;
  /** The most that were alive together. */
  readonly gradients: number;
  /** What the optimiser keeps of the parameters. */
  readonly states: number;
  /** What the forward pass kept for backward. */
  readonly activations: number;
  /** The most that strut held at once in the step, all of the above and temporaries included. */
  readonly peak: number;
}
