import { nearest, StrutError } from "./errors.ts";
import type { Adapter } from "./adapters/adapter.ts";
import type { Initializer } from "./initializers/initializer.ts";
import type { Method } from "./nn/contracts.ts";
import type { Optimizer } from "./optimizers/optimizer.ts";

/** Every system of strut: id → lazy import. Ids are those of the papers' short names. */
const methods = {
  adafactor: async () => (await import("./optimizers/adafactor.ts")).adafactor,
  adam: async () => (await import("./optimizers/adam.ts")).adam,
  adamw: async () => (await import("./optimizers/adamw.ts")).adamw,
  "adamw-hf": async () => (await import("./optimizers/adam.ts")).adamwHf,
  adalora: async () => (await import("./adapters/adalora.ts")).adalora,
  allora: async () => (await import("./adapters/allora.ts")).allora,
  badam: async () => (await import("./optimizers/badam.ts")).badam,
  bitfit: async () => (await import("./adapters/full.ts")).bitfit,
  bone: async () => (await import("./adapters/bone.ts")).bone,
  bottleneck: async () => (await import("./adapters/bottleneck.ts")).bottleneck,
  compacter: async () => (await import("./adapters/compacter.ts")).compacter,
  dora: async () => (await import("./adapters/dora.ts")).dora,
  dsee: async () => (await import("./adapters/dsee.ts")).dsee,
  dylora: async () => (await import("./adapters/dylora.ts")).dylora,
  fira: async () => (await import("./optimizers/fira.ts")).fira,
  flora: async () => (await import("./adapters/flora.ts")).flora,
  full: async () => (await import("./adapters/full.ts")).fullFineTuning,
  mkor: async () => (await import("./optimizers/mkor.ts")).mkor,
  "flora-projection": async () => (await import("./optimizers/flora-projection.ts")).floraProjection,
  frugal: async () => (await import("./optimizers/frugal.ts")).frugal,
  galore: async () => (await import("./optimizers/galore.ts")).galore,
  gradnormlorp: async () => (await import("./optimizers/gradnormlorp.ts")).gradNormLorp,
  ia3: async () => (await import("./adapters/ia3.ts")).ia3,
  increlora: async () => (await import("./adapters/increlora.ts")).increlora,
  lamb: async () => (await import("./optimizers/lamb.ts")).lamb,
  lion: async () => (await import("./optimizers/lion.ts")).lion,
  loha: async () => (await import("./adapters/loha.ts")).loha,
  lokr: async () => (await import("./adapters/lokr.ts")).lokr,
  loldu: async () => (await import("./adapters/loldu.ts")).loldu,
  "lora-xs": async () => (await import("./adapters/lora-xs.ts")).loraXs,
  "lora-ggpo": async () => (await import("./adapters/lora-ggpo.ts")).loraGgpo,
  lisa: async () => (await import("./optimizers/owlore.ts")).lisa,
  loram: async () => (await import("./adapters/loram.ts")).loram,
  lora: async () => (await import("./adapters/lora.ts")).lora,
  mos: async () => (await import("./adapters/mos.ts")).mos,
  eva: async () => (await import("./initializers/eva.ts")).eva,
  "lora-sb": async () => (await import("./initializers/lora-sb.ts")).loraSb,
  olora: async () => (await import("./adapters/lora.ts")).olora,
  owlore: async () => (await import("./optimizers/owlore.ts")).owlore,
  pissa: async () => (await import("./adapters/lora.ts")).pissa,
  nola: async () => (await import("./adapters/nola.ts")).nola,
  pst: async () => (await import("./adapters/pst.ts")).pst,
  randlora: async () => (await import("./adapters/randlora.ts")).randlora,
  relora: async () => (await import("./adapters/relora.ts")).relora,
  rslora: async () => (await import("./adapters/lora.ts")).rslora,
  s2lora: async () => (await import("./adapters/s2lora.ts")).s2lora,
  sara: async () => (await import("./adapters/sara.ts")).sara,
  sgd: async () => (await import("./optimizers/sgd.ts")).sgd,
  signsgd: async () => (await import("./optimizers/lion.ts")).signsgd,
  sora: async () => (await import("./adapters/sora.ts")).sora,
  svfit: async () => (await import("./adapters/svfit.ts")).svfit,
  vera: async () => (await import("./adapters/vera.ts")).vera,
} as const satisfies Record<string, () => Promise<unknown>>;

export const methodIds = Object.keys(methods) as readonly (keyof typeof methods)[];

/** The method with an id; an unknown id is an error with the nearest names. */
export async function methodById(id: string): Promise<Method> {
  if (Object.hasOwn(methods, id)) return (await methods[id as keyof typeof methods]()) as unknown as Method;
  const near = nearest(id, methodIds);
  throw new StrutError("method", `there is no method ${JSON.stringify(id)}`, {
    path: id,
    hint: near.length > 0 ? `Did you mean ${near.join(" or ")}?` : `Methods: ${methodIds.join(", ")}.`,
  });
}

export const isAdapter = (method: Method): method is Adapter => method.family === "adapters";

/** All adapters of the catalog, for reading directories that may hold any of them. */
export async function adapters(): Promise<Adapter[]> {
  return (await Promise.all(methodIds.map(methodById))).filter(isAdapter);
}

export const isOptimizer = (method: Method): method is Optimizer => method.family === "optimizers";

/** The method with an id, of one family; another kind of method, or none, is an error that lists those there are. */
async function ofFamily<M extends Method>(id: string, is: (method: Method) => method is M, noun: string, path: string): Promise<M> {
  const method = Object.hasOwn(methods, id) ? await methodById(id) : undefined;
  if (method && is(method)) return method;
  const ids = (await Promise.all(methodIds.map(methodById))).filter(is).map((one) => one.id);
  const [near] = nearest(id, ids, 1);
  throw new StrutError("option", `there is no ${noun} ${JSON.stringify(id)}`, {
    path,
    hint: near ? `Did you mean ${near}?` : `There are ${ids.join(", ")}.`,
  });
}

export const optimizerById = (id: string): Promise<Optimizer> => ofFamily(id, isOptimizer, "optimiser", "training.optimizer");

const isInitializer = (method: Method): method is Initializer => method.family === "initializers";

export const initializerById = (id: string): Promise<Initializer> => ofFamily(id, isInitializer, "initialiser", "initializer");
