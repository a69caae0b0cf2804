import { StrutError } from "../errors.ts";
import type { Backend, Block } from "./backends/backend.ts";

/** The owner of one block; tensors that share memory share the handle. */
export interface Handle {
  block: Block | undefined;
  /** Survives every scope: held by a Parameter or kept by the user. */
  kept: boolean;
  scope: Scope | undefined;
}

/** Temporaries made while it is open are returned to the pool when it closes. */
export interface Scope {
  readonly handles: Handle[];
}

/** Size classes: eight steps a doubling, so that at most an eighth is wasted. */
function sizeClass(bytes: number): number {
  if (bytes <= 64) return 64;
  const step = Math.max(64, 2 ** (Math.floor(Math.log2(bytes - 1)) - 3));
  return Math.ceil(bytes / step) * step;
}

/** Hands out blocks from per-size free lists and takes them back; never returns memory to the system. */
export class Pool {
  readonly #free = new Map<number, Block[]>();
  readonly #scopes: Scope[] = [];
  readonly #registry = new FinalizationRegistry<Block>((block) => this.#recycle(block));
  readonly #backend: Backend;
  /** Bytes ever taken from the backend. */
  pooledBytes = 0;
  /** Bytes handed out now. */
  usedBytes = 0;
  /** Highest `usedBytes` since it was last set. */
  peakBytes = 0;

  constructor(backend: Backend) {
    this.#backend = backend;
  }

  allocate(bytes: number): Handle {
    const size = sizeClass(bytes);
    let block = this.#free.get(size)?.pop();
    if (block === undefined) {
      block = this.#backend.allocate(size);
      this.pooledBytes += size;
    }
    this.usedBytes += size;
    this.peakBytes = Math.max(this.peakBytes, this.usedBytes);
    const scope = this.#scopes.at(-1);
    const handle: Handle = { block, kept: false, scope };
    if (scope) scope.handles.push(handle);
    else this.#registry.register(handle, block, handle);
    return handle;
  }

  #recycle(block: Block): void {
    this.usedBytes -= block.bytes;
    const list = this.#free.get(block.bytes);
    if (list) list.push(block);
    else this.#free.set(block.bytes, [block]);
  }

  /** Returns the block at once; whoever still reads the tensor gets an error. */
  free(handle: Handle): void {
    if (handle.block === undefined) return;
    if (!handle.scope) this.#registry.unregister(handle);
    this.#recycle(handle.block);
    handle.block = undefined;
  }

  /** Takes a handle out of its scope: from now on the garbage collector decides. */
  keep(handle: Handle): void {
    handle.kept = true;
    if (!handle.scope || !handle.block) return;
    handle.scope = undefined;
    this.#registry.register(handle, handle.block, handle);
  }

  open(exclusive = false): Scope {
    if (exclusive && this.#scopes.length > 0)
      throw new StrutError("scope", "a training step was started while another scope is open", {
        hint: "Await the first training run before starting a second one in this process.",
      });
    const scope: Scope = { handles: [] };
    this.#scopes.push(scope);
    return scope;
  }

  /** Closes the innermost scope; `survivors` move to the one around it. */
  close(scope: Scope, survivors: ReadonlySet<Handle>): void {
    if (this.#scopes.at(-1) !== scope) {
      this.#scopes.splice(this.#scopes.indexOf(scope), 1);
      throw new StrutError("scope", "scopes were not closed in the order they were opened", {
        hint: "Two asynchronous tasks opened scopes at the same time; run them one after the other.",
      });
    }
    this.#scopes.pop();
    const outer = this.#scopes.at(-1);
    for (const handle of scope.handles) {
      if (handle.block === undefined || handle.scope !== scope) continue;
      if (!survivors.has(handle)) {
        this.#recycle(handle.block);
        handle.block = undefined;
      } else if (outer) {
        handle.scope = outer;
        outer.handles.push(handle);
      } else {
        handle.scope = undefined;
        this.#registry.register(handle, handle.block, handle);
      }
    }
  }
}
