export { jacobi_sweep, secular, tridiagonal_panel, tridiagonal_ql } from "./linalg-eigh.ts";
