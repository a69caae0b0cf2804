import { lawsOfPart } from "./catalog.ts";

await lawsOfPart(1, 4);
