import { spawn } from "node:child_process";
import { median, type Row } from "./measure.ts";

/** Runs a command and returns the measurements it prints, one JSON object a line. */
export async function rowsOf(command: string, environment: NodeJS.ProcessEnv): Promise<Row[]> {
  const child = spawn("sh", ["-c", `exec ${command}`], { stdio: ["ignore", "pipe", "inherit"], env: environment });
  let text = "";
  for await (const chunk of child.stdout) text += String(chunk);
  const status = await new Promise<number>((resolve) => (child.exitCode === null ? child.on("exit", (code) => resolve(code ?? 1)) : resolve(child.exitCode)));
  if (status !== 0) throw new Error(`the command ended with status ${status}: ${command}`);
  return text
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Row)
    .filter(({ name }) => name !== "config");
}

/** Runs ours and the peer's in alternation, and prints the ratios of their medians. */
export async function comparePeer(own: string, peer: string, rounds: number): Promise<void> {
  const collected = { ours: [] as Row[][], theirs: [] as Row[][] };
  const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(OPENBLAS|MKL|GOMP)_/.test(name)));
  for (let round = 0; round < rounds; round++) {
    collected.ours.push(await rowsOf(own, environment));
    collected.theirs.push(await rowsOf(peer, environment));
  }
  for (const [i, { name, shape }] of collected.ours[0]!.entries()) {
    const rows = (side: Row[][]): Row[] => side.flatMap((run) => run.filter((row) => row.name === name && row.shape === shape));
    const [ours, theirs] = [rows(collected.ours), rows(collected.theirs)];
    if (theirs.length === 0) continue;
    const time = (side: Row[]): number => median(side.map((row) => row.median_s));
    const memory = (side: Row[]): number => Math.max(...side.map((row) => row.peak_rss_mib));
    const round = (x: number): number => Math.round(x * 1000) / 1000;
    console.log(
      JSON.stringify({
        name,
        shape,
        rounds,
        median_s: time(ours),
        peer_median_s: time(theirs),
        time_ratio: round(time(ours) / time(theirs)),
        peak_rss_mib: memory(ours),
        peer_peak_rss_mib: memory(theirs),
        memory_ratio: round(memory(ours) / memory(theirs)),
        extra: collected.ours.at(-1)![i]!.extra,
        peer_extra: theirs.at(-1)!.extra,
      }),
    );
  }
}
