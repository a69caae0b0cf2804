import { nearest, StrutError } from "./errors.ts";
import type { Adapter } from "./adapters/adapter.ts";
import type { Method } from "./nn/contracts.ts";

/** Every system of strut: id → lazy import. Ids are those of the papers' short names. */
const methods = {
  dora: async () => (await import("./adapters/dora.ts")).dora,
  lora: async () => (await import("./adapters/lora.ts")).lora,
  rslora: async () => (await import("./adapters/lora.ts")).rslora,
} as const satisfies Record<string, () => Promise<unknown>>;

export const methodIds = Object.keys(methods) as readonly (keyof typeof methods)[];

/** The method with an id; an unknown id is an error with the nearest names. */
export async function methodById(id: string): Promise<Method> {
  if (Object.hasOwn(methods, id)) return (await methods[id as keyof typeof methods]()) as unknown as Method;
  const near = nearest(id, methodIds);
  throw new StrutError("method", `there is no method ${JSON.stringify(id)}`, { path: id, hint: near.length > 0 ? `Did you mean ${near.join(" or ")}?` : `Methods: ${methodIds.join(", ")}.` });
}

export const isAdapter = (method: Method): method is Adapter => method.family === "adapters";

/** All adapters of the catalog, for reading directories that may hold any of them. */
export async function adapters(): Promise<Adapter[]> {
  return (await Promise.all(methodIds.map(methodById))).filter(isAdapter);
}
