// What an application takes in that adapts models with one method.
export { adapt, lora } from "strut/adapters";
