export { eigh, eigvalsh, type Eigh } from "./eigh.ts";
