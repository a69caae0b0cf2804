/** What an application that only adapts a model takes in. */
export { adapt, lora } from "strut/adapters";
