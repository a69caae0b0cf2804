export { eigh, eigvalsh, type Eigh } from "./eigh.ts";
export { singularValues, svd, type Svd } from "./svd.ts";
