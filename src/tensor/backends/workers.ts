import type { ThreadStart } from "./thread.ts";

/** Why this place can have no threads, or nothing. */
export function threadless(): string | undefined {
  if (typeof SharedArrayBuffer !== "undefined") return undefined;
  return "crossOriginIsolated" in globalThis
    ? "this page is not cross-origin isolated (it needs the headers Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp)"
    : "there is no SharedArrayBuffer here";
}

/** Whether this thread may sleep; the main thread of a page may not. */
export function mayBlock(): boolean {
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0);
    return true;
  } catch {
    return false;
  }
}

// a path that no bundler follows: in Node the file is read where it lies
const path = "../../../dist/tensor/backends/thread.js";

/** Starts a worker of the pool; resolves when it is about to wait for tasks. It does not keep a process alive. */
export function startWorker(start: ThreadStart): Promise<void> {
  const node = globalThis.process?.getBuiltinModule?.("node:worker_threads");
  return new Promise((resolve, reject) => {
    if (node) {
      const worker = new node.Worker(new URL(path, import.meta.url), { workerData: start, execArgv: [] });
      worker.once("message", () => {
        worker.off("error", reject).unref();
        resolve();
      });
      worker.once("error", reject);
      return;
    }
    const worker = new Worker(new URL("../../../dist/tensor/backends/thread.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", () => resolve(), { once: true });
    worker.addEventListener("error", ({ message }) => reject(new Error(message || "a worker could not be started")), { once: true });
    worker.postMessage(start);
  });
}
