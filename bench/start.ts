import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { median } from "./measure.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** What is started, and the milliseconds that it may take beyond a Node that does nothing. */
const programs = [
  { name: "import strut", argv: ["--input-type=module", "-e", 'import "strut"'], most: 60 },
  { name: "strut info data/lm/stories260K", argv: ["dist/node/cli/main.js", "info", "data/lm/stories260K"], most: 150 },
];

function milliseconds(argv: readonly string[]): number {
  const start = performance.now();
  const { status, stderr } = spawnSync(process.execPath, argv, { cwd: root, encoding: "utf8" });
  if (status !== 0) throw new Error(`node ${argv.join(" ")} ended with status ${status}: ${stderr}`);
  return performance.now() - start;
}

/** Times from the start of Node to its end, each beside a bare Node just before: the median of the differences. */
export function startUp(runs: number): void {
  const bare = ["-e", "0"];
  milliseconds(bare);
  for (const { name, argv, most } of programs) {
    milliseconds(argv);
    const pairs = Array.from({ length: runs }, () => ({ without: milliseconds(bare), all: milliseconds(argv) }));
    const beyond = median(pairs.map(({ without, all }) => all - without));
    const node = median(pairs.map(({ without }) => without));
    const tenths = (x: number): number => Math.round(x * 10) / 10;
    console.log(JSON.stringify({ name: "start-up", program: name, runs, node_ms: tenths(node), beyond_ms: tenths(beyond), most_ms: most }));
  }
}
