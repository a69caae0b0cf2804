export { toLowRank, type LowRankOptions, type LowRankResult } from "./convert.ts";
export { convolve, patchesOf, type ConvGeometry } from "./convolution.ts";
export { dense, sumOf } from "./dense.ts";
export { scaledRows } from "./diagonal.ts";
export { lowRank } from "./low-rank.ts";
export { isOperator, type Cost, type LinearOperator } from "./operator.ts";
export { replacedRows } from "./replaced-rows.ts";
