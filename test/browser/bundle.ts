import { bundle } from "../bundle/build.ts";
import { build } from "../cli/dist.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** Where the tests run: in an isolated page, in a worker of one, or in a page that may have no threads. */
    place: "page" | "worker" | "alone";
  }
}

/** Bundles the application that `bundle.test.ts` runs; the pages are served its files. */
export default async function setup(): Promise<void> {
  build();
  await bundle("page", "out/bundle");
}
