import { engine } from "./engine.ts";
import type { Handle } from "./memory.ts";
import { Tensor } from "./tensor.ts";

/** Every handle reachable from a result through arrays, plain objects, maps and sets. */
function handlesIn(value: unknown, found = new Set<Handle>()): Set<Handle> {
  if (value instanceof Tensor) found.add(value.handle);
  else if (Array.isArray(value) || value instanceof Set) for (const item of value) handlesIn(item, found);
  else if (value instanceof Map) for (const item of value.values()) handlesIn(item, found);
  else if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype)
    for (const item of Object.values(value)) handlesIn(item, found);
  return found;
}

/**
 * Runs `body` and returns its temporaries to the pool; tensors in its result, held by a Parameter or kept survive.
 * An asynchronous body keeps the scope open over its awaits.
 *
 * @example
 * const y = scope(() => add(mul(x, x), x)); // the product's memory is free again
 */
export function scope<T>(body: () => T, options: { exclusive?: boolean } = {}): T {
  const { pool } = engine();
  const opened = pool.open(options.exclusive);
  const none: ReadonlySet<Handle> = new Set();
  let result: T;
  try {
    result = body();
  } catch (error) {
    pool.close(opened, none);
    throw error;
  }
  if (!(result instanceof Promise)) {
    pool.close(opened, handlesIn(result));
    return result;
  }
  return result.then(
    (value) => {
      pool.close(opened, handlesIn(value));
      return value;
    },
    (error) => {
      pool.close(opened, none);
      throw error;
    },
  ) as T;
}

/** Lets a tensor outlive its scope and backward(). */
export function keep<T extends Tensor>(tensor: T): T {
  engine().pool.keep(tensor.handle);
  return tensor;
}

/** Returns the memory of a tensor, and of all that share it, at once. */
export const free = (tensor: Tensor): void => engine().pool.free(tensor.handle);
