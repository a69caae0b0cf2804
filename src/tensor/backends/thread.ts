/** What a thread of the WebAssembly pool is started with. */
export interface ThreadStart {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly slot: number;
  /** The top of its own stack. */
  readonly stack: number;
}

interface ThreadExports {
  readonly __stack_pointer: WebAssembly.Global<"i32">;
  strut_work(slot: number): void;
  strut_break(): void;
}

/** Runs tasks of the pool on an instance of its own until the engine stops. */
function work({ module, memory, slot, stack }: ThreadStart, ready: () => void): void {
  const exports = new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as ThreadExports;
  exports.__stack_pointer.value = stack;
  ready();
  try {
    exports.strut_work(slot);
  } catch (error) {
    exports.strut_break();
    throw error;
  }
}

const node = globalThis.process?.getBuiltinModule?.("node:worker_threads");
if (node) work(node.workerData as ThreadStart, () => node.parentPort!.postMessage("ready"));
else
  self.addEventListener("message", ({ data }: MessageEvent<ThreadStart>) => {
    work(data, () => self.postMessage("ready"));
    self.close();
  });
