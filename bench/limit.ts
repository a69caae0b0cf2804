import { isMainThread, parentPort, Worker } from "node:worker_threads";

const [I32, F32, V128] = [0x7f, 0x7d, 0x7b];
const CHAINS = 12;
const TURNS = 2_000_000;

/** The bytes of an unsigned number, seven bits each. */
const leb = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >>> 7)]);
const section = (id: number, content: readonly number[]): number[] => [id, ...leb(content.length), ...content];
const simd = (op: number): number[] => [0xfd, ...leb(op)];
const [splat, lane, multiply, add] = [simd(0x13), simd(0x1f), simd(0xe6), simd(0xe4)];

/**
 * A module whose function (turns, x) does a multiplication or an addition of four floats on each of twelve registers a turn:
 * as many of each, none waiting for memory, so it runs at the limit of 128-bit arithmetic without fused operations.
 */
function registersOnly(): Uint8Array<ArrayBuffer> {
  const local = (i: number): number => 2 + i;
  const factor = local(CHAINS);
  const chains = Array.from({ length: CHAINS }, (_, i) => i);
  const body = [
    ...[1, ...leb(CHAINS + 1), V128],
    ...[...chains, CHAINS].flatMap((i) => [0x20, 1, ...splat, 0x21, local(i)]),
    ...[0x03, 0x40],
    ...chains.flatMap((i) => [0x20, local(i), 0x20, factor, ...(i % 2 ? add : multiply), 0x21, local(i)]),
    ...[0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0d, 0, 0x0b],
    ...[0x20, local(0), ...chains.slice(1).flatMap((i) => [0x20, local(i), ...add]), ...lane, 0, 0x0b],
  ];
  return new Uint8Array([
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, [1, 0x60, 2, I32, F32, 1, F32]),
    ...section(3, [1, 0]),
    ...section(7, [1, 1, 0x66, 0, 0]),
    ...section(10, [1, ...leb(body.length), ...body]),
  ]);
}

/** GFLOP/s of this thread. */
function measure(run: (turns: number, x: number) => number): number {
  const start = performance.now();
  run(TURNS, 1);
  return (TURNS * CHAINS * 4) / (performance.now() - start) / 1e6;
}

const load = async () => {
  const { instance } = await WebAssembly.instantiate(registersOnly());
  const run = instance.exports["f"] as (turns: number, x: number) => number;
  for (let i = 0; i < 5; i++) run(TURNS / 10, 1);
  return run;
};

/** The limit of 128-bit multiplications and additions in GFLOP/s, of threads that run at the same time: the best of some runs. */
export async function simdLimit(threads: number, runs = 9): Promise<number> {
  const run = await load();
  const others = Array.from({ length: threads - 1 }, () => new Worker(new URL(import.meta.url)));
  const speeds: number[] = [];
  try {
    for (let i = 0; i < runs + 2; i++) {
      const answers = others.map((worker) => new Promise<number>((resolve) => worker.once("message", resolve)));
      for (const worker of others) worker.postMessage("run");
      const own = measure(run);
      const all = own + (await Promise.all(answers)).reduce((total, speed) => total + speed, 0);
      if (i >= 2) speeds.push(all);
    }
  } finally {
    await Promise.all(others.map((worker) => worker.terminate()));
  }
  return Math.max(...speeds);
}

if (!isMainThread) {
  const run = await load();
  parentPort!.on("message", () => parentPort!.postMessage(measure(run)));
}
