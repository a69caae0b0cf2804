import { lawsOfPart } from "./catalog.ts";

await lawsOfPart(3, 4);
