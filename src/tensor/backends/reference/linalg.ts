export { secular, tridiagonal_panel, tridiagonal_ql } from "./linalg-eigh.ts";
