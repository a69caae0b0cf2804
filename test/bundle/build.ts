import { fileURLToPath } from "node:url";
import { build, type Rollup } from "vite";

export type Output = Rollup.OutputChunk | Rollup.OutputAsset;

/** Bundles an entry of this folder for browsers, as an application would that has strut installed; into a folder if one is named. */
export async function bundle(entry: "adapt" | "everything" | "page", folder?: string): Promise<Output[]> {
  const built = await build({
    configFile: false,
    root: fileURLToPath(new URL("../..", import.meta.url)),
    publicDir: false,
    logLevel: "error",
    build: {
      write: folder !== undefined,
      ...(folder === undefined ? {} : { outDir: folder }),
      emptyOutDir: true,
      rolldownOptions: {
        input: { [entry]: fileURLToPath(new URL(`${entry}.ts`, import.meta.url)) },
        output: { entryFileNames: "[name].js" },
        preserveEntrySignatures: "strict",
      },
    },
  });
  return (built as Rollup.RollupOutput).output;
}
