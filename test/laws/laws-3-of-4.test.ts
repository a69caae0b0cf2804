import { lawsOfPart } from "./catalog.ts";

await lawsOfPart(2, 4);
