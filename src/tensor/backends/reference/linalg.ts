export { cholesky, householder_panel, lu, lu_rook, pivot_order, triangular_solve } from "./linalg-factor.ts";
