import { lawsOfPart } from "./catalog.ts";

await lawsOfPart(0, 4);
