import { fingerprint } from "../data/batches.ts";
import { bytesOf, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import type { Session } from "./session.ts";

/** The first bytes of a weight as whole numbers: enough to tell models apart. */
function sample(w: Tensor): Uint8Array {
  const view = hostView(w);
  return new Uint8Array(view.buffer, view.byteOffset, Math.min(64, w.size) * bytesOf(w.dtype)).slice();
}

/** All that decides the course of a run: options, data, regimes, the frozen model, and the shapes that train. Taken before step 0. */
export function recipeOf(session: Session): Readonly<Record<string, unknown>> {
  const frozen = [...session.parameters].filter(([name]) => !session.trained.has(name));
  return {
    ...session.settings.recipe,
    regimes: session.regimes.map(({ name }) => name),
    adapters: session.model.active.map((name) => ({
      name,
      method: session.model.adapters.get(name)!.method,
      options: session.model.adapters.get(name)!.options,
    })),
    model: fingerprint(...frozen.map(([, w]) => sample(w))),
    shapes: Object.fromEntries([...session.trained].map(([name, w]) => [name, w.shape.join("×")])),
  };
}

/** The first place where two recipes differ, as JSON holds them. */
export function firstDifference(before: unknown, now: unknown, where = ""): { where: string; before: string; now: string } | undefined {
  const plain = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
  if (plain(before) && plain(now) && Array.isArray(before) === Array.isArray(now)) {
    for (const key of new Set([...Object.keys(before), ...Object.keys(now)])) {
      const found = firstDifference(before[key], now[key], where ? `${where}.${key}` : key);
      if (found) return found;
    }
    return undefined;
  }
  const [left, right] = [JSON.stringify(before) ?? "absent", JSON.stringify(now) ?? "absent"];
  return left === right ? undefined : { where, before: left, now: right };
}
