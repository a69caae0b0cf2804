export { jacobi_sweep, secular, tridiagonal_panel, tridiagonal_ql } from "./linalg-eigh.ts";
export { column_moments, widen_rows } from "./moments.ts";
export { cholesky, householder_panel, lu, lu_rook, pivot_order, triangular_solve } from "./linalg-factor.ts";
