import { spawn, type ChildProcessByStdio } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Readable } from "node:stream";

const runner = `
  const { createViteServer } = await import("vitest/node");
  const server = await createViteServer({ configFile: false, server: { middlewareMode: true, hmr: false, watch: null }, appType: "custom", optimizeDeps: { noDiscovery: true }, logLevel: "error" });
  const { main } = await server.ssrLoadModule(process.argv[1]);
  await main(process.argv.slice(2));
  process.exit(0);
`;

/** Runs `main` of a TypeScript file of this folder in a process of its own, which may be killed. */
export function child(file: string, ...args: string[]): ChildProcessByStdio<null, Readable, Readable> {
  const path = fileURLToPath(new URL(file, import.meta.url));
  const root = fileURLToPath(new URL("../..", import.meta.url));
  return spawn(process.execPath, ["--input-type=module", "-e", runner, path, ...args], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
}
