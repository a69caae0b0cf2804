export { cholesky, householder_panel, lu, triangular_solve } from "./linalg-factor.ts";
