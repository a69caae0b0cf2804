export { assignment } from "./assignment.ts";
export { eigh, eigvalsh, type Eigh } from "./eigh.ts";
export { kronecker, nearestKronecker } from "./kronecker.ts";
export type { ProductOperator } from "./products.ts";
export { randomizedSvd, type RandomizedSvd, type RandomizedSvdOptions } from "./randomized-svd.ts";
export { inverseSquareRoot, matrixSquareRoot, polar, powerIteration, pseudoInverse, type PowerIteration } from "./spectral-functions.ts";
export { eighBackward, svdBackward, type ClusterOption } from "./spectral-gradients.ts";
export { singularValues, svd, type Svd } from "./svd.ts";
export { modeProduct, tucker, tuckerReconstruct, type Tucker } from "./tucker.ts";
