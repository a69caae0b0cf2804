export { choleskyFactor, solvePositive } from "./cholesky.ts";
export { choleskyQr2 } from "./cholesky-qr.ts";
export { leastSquares, type LeastSquares } from "./least-squares.ts";
export { ldu, lu, type Ldu } from "./lu.ts";
export { qr } from "./qr.ts";
export { qrBackward } from "./qr-gradient.ts";
export { solveTriangular, type TriangularOptions } from "./triangular.ts";
