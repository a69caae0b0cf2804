export { choleskyFactor, solvePositive } from "./cholesky.ts";
export { choleskyQr2 } from "./cholesky-qr.ts";
export { qr } from "./qr.ts";
export { solveTriangular, type TriangularOptions } from "./triangular.ts";
