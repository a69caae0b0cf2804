export { householder_panel } from "./linalg-factor.ts";
