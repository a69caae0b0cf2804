export { engine, start, stop, type Engine, type StartOptions } from "./engine.ts";
export { bytesOf, isReal, type DType, type Real, type TypedArray } from "./dtype.ts";
export { copyOf, empty, fromBytes, full, ones, Parameter, hostNumbers, Tensor, tensor, toBytes, zeros } from "./tensor.ts";
export { free, keep, scope } from "./scope.ts";
export { backward, customGradient, gradientsFlow, noGrad, recompute, stopGradient, type BackwardOptions, type Gradients } from "./tape.ts";
export { Rng } from "./rng.ts";
export * from "./ops/attention.ts";
export * from "./ops/elementwise.ts";
export { embeddingBag } from "./ops/embedding-bag.ts";
export { addLinear, gemmInto, linear, matmul } from "./ops/matmul.ts";
export { batchNorm, groupNorm, type RunningStatistics } from "./ops/channels.ts";
export { conv2d, fold, unfold, type ConvolutionOptions } from "./ops/convolution.ts";
export {
  binaryCrossEntropyWithLogits,
  crossEntropy,
  klDivergence,
  l1Loss,
  logSoftmax,
  meanSquaredError,
  smoothL1Loss,
} from "./ops/losses.ts";
export { embedding, layerNorm, linearCrossEntropy, rmsNorm, rotary, softmax, tokenLosses } from "./ops/nn.ts";
export { adaptiveAveragePool2d, averagePool2d, maxPool2d } from "./ops/pooling.ts";
export { max, mean, sum, sumSquares } from "./ops/reduce.ts";
export { gru, gruCell, lstm, lstmCell } from "./ops/recurrent.ts";
export { cast, concat, contiguous, expand, indexCopy, permute, reshape, slice, transpose } from "./ops/shape.ts";
