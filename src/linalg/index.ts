export { qr } from "./qr.ts";
