import { expect } from "vitest";
import { adapt, adapterParameters, attachedTo, merge, type Adapter, type InitContext } from "../../src/adapters/index.ts";
import { StrutError } from "../../src/errors.ts";
import type { Model } from "../../src/models/index.ts";
import { applyEmbedding, applyLinear } from "../../src/models/model.ts";
import type { Params, Site, Statistic } from "../../src/nn/contracts.ts";
import { add, backward, isReal, mul, noGrad, Parameter, Rng, scope, start, stop, sum, tensor, toBytes, type Tensor } from "../../src/tensor/index.ts";
import { equalBytes } from "../support/bytes.ts";
import { checkGradients, leaf, sample } from "../support/gradients.ts";
import type { Sheet } from "./counts.ts";
import { baseOf, outputOf, siteInput, type Scaffold } from "./scaffolds.ts";

/** A method with options on a scaffold. */
export interface Subject {
  readonly method: Adapter;
  readonly sheet: Sheet;
  readonly options: Readonly<Record<string, unknown>>;
  readonly scaffold: Scaffold;
  readonly base: Model;
  /** Where the method can sit. */
  readonly sites: readonly Site[];
  /** Adapters to stack with, with options that fit the scaffold. */
  readonly others: readonly { method: Adapter; options: Readonly<Record<string, unknown>> }[];
}

/** What every method of a family must do. Waivers and the docs call a law by its name. */
export interface Law {
  readonly name: string;
  /** Left out where the numbers would be too coarse. */
  readonly only?: "f64";
  /** Costs much and depends little on the shape: it runs on the first scaffold of each dtype, with the first options. */
  readonly few?: true;
  check(subject: Subject): Promise<void>;
}

export const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

export const pathsOf = ({ method }: Pick<Subject, "method">, model: Model): string[] =>
  model.sites.filter(({ kind }) => method.kinds.includes(kind)).map(({ path }) => path);

export const sitesFor = (method: Adapter, model: Model): Site[] => model.sites.filter(({ kind }) => method.kinds.includes(kind));

export interface Placement {
  base?: Model;
  name?: string;
  seed?: number;
  targets?: readonly string[];
  options?: Readonly<Record<string, unknown>>;
  method?: Adapter;
}

export const put = (
  subject: Subject,
  { base = subject.base, name = "default", seed = 0, options = subject.options, method = subject.method, targets = pathsOf({ method }, base) }: Placement = {},
): Promise<Model> => adapt(base, method, options, { name, seed, targets });

/** Adds noise to every parameter that trains. */
export function stir(model: Model, name = "default", seed = 5): Model {
  const rng = new Rng(seed);
  for (const [key, p] of adapterParameters(attachedTo(model, name)!))
    if (p.trainable && isReal(p.dtype)) {
      const { dtype } = p;
      p.assign(noGrad(() => scope(() => add(p, rng.fork(key).normal(p.shape, 0.3, dtype)))));
    }
  return model;
}

export const stirred = async (subject: Subject, placement: Placement = {}): Promise<Model> => stir(await put(subject, placement), placement.name);

export const output = (model: Model, { scaffold }: Subject): Promise<number[]> => numbers(noGrad(() => scope(() => outputOf(model, scaffold))));

/** Largest difference, relative to the largest number. NaN where one side has it alone. */
export function distance(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length);
  const size = Math.max(1e-30, ...b.map(Math.abs));
  return Math.max(0, ...a.map((value, i) => Math.abs(value - b[i]!))) / size;
}

export const tolerance = ({ scaffold }: Subject): number => (scaffold.dtype === "f64" ? 1e-11 : 1e-5);

/** A site's own output, whatever its kind. */
export function siteOutput(model: Model, site: Site, x: Tensor): Tensor {
  if (site.kind === "embedding") return applyEmbedding(model, site.path, x, {});
  return applyLinear(model, site.path, x, {});
}

export const idsOf = (site: Site): Tensor => tensor([0, site.out - 1, Math.floor(site.out / 2), 0], [2, 2], "i32");

/** One site of each role, for laws that look at sites one at a time. */
export const byRole = ({ sites }: Subject): Site[] => [...new Map(sites.map((site) => [`${site.role} ${site.kind} ${site.out}×${site.in}`, site])).values()];

export const trainables = (params: Params): [string, Parameter][] =>
  Object.entries(params).filter((entry): entry is [string, Parameter] => entry[1] instanceof Parameter && entry[1].trainable);

/** Runs something that must succeed or say in a sentence why it cannot. */
export async function orSentence(body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (!(error instanceof StrutError)) throw error;
    expectSentence(error);
  }
}

export function expectSentence(error: unknown): void {
  expect(error, "ends in a StrutError").toBeInstanceOf(StrutError);
  const { message } = error as StrutError;
  expect(message.length).toBeGreaterThan(15);
  expect(message).not.toMatch(/undefined|\[object/);
}

export const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  );

/** Whether merging must work: every active method is a matrix, and what it adds to biases has a place in the base. */
export const mergeable = (model: Model): boolean =>
  model.active.every((name) => {
    const { definition: method, entries, options } = attachedTo(model, name)!;
    return (
      (method.update !== undefined || method.weight !== undefined || method.copies !== undefined) &&
      [...entries].every(([path, p]) => model.layers.get(path)!.bias !== undefined || !method.bias?.(p, model.layers.get(path)!.site!, options as never))
    );
  });

/** The merged model, or undefined where merging rightly ends in a sentence. */
export function mergedOf(model: Model): Model | undefined {
  if (mergeable(model)) return merge(model);
  try {
    merge(model);
  } catch (error) {
    expectSentence(error);
    return undefined;
  }
  throw new Error("merging had to end in a sentence: the method is no matrix here");
}

/** Every number of an adapter and of its model's answer: equal bytes mean an equal run. */
export async function fingerprint(
  subject: Subject,
  placement: Placement = {},
): Promise<{ values: Map<string, Uint8Array>; output: Uint8Array; outputs: number[] }> {
  const model = await put(subject, placement);
  const { entries, shared } = attachedTo(model, "default")!;
  const values = new Map(
    [...entries, ["shared", shared] as const].flatMap(([path, params]) => Object.entries(params).map(([key, p]) => [`${path}/${key}`, toBytes(p)] as const)),
  );
  stir(model);
  attachedTo(model, "default")!.live.training = true;
  const out = noGrad(() => outputOf(model, subject.scaffold));
  return { values, output: toBytes(out), outputs: await numbers(out) };
}

export const sameBytes = (a: ReadonlyMap<string, Uint8Array>, b: ReadonlyMap<string, Uint8Array>): string[] =>
  [...a].filter(([key, bytes]) => !b.has(key) || !equalBytes(bytes, b.get(key)!)).map(([key]) => key);

/** The subject's fingerprint on another engine; the usual one runs again afterwards. */
export async function onEngine<T>(
  options: { backend: "native" | "wasm" | "reference"; threads?: number },
  subject: Subject,
  body: (subject: Subject) => Promise<T>,
): Promise<T | undefined> {
  stop();
  try {
    await start(options);
  } catch {
    await start();
    return undefined;
  }
  try {
    const { model } = await baseOf(subject.scaffold);
    return await body({ ...subject, base: model, sites: sitesFor(subject.method, model) });
  } finally {
    stop();
    await start();
  }
}

/** The method, watched: whether it drew random numbers, and no statistic but those it declares. */
export function watched(method: Adapter): { method: Adapter; drew: () => boolean; drewAtSites: () => boolean } {
  let [drew, atSites] = [false, false];
  const allowed = new Set<Statistic>(method.needs ?? []);
  const guard = (context: InitContext, site = false): InitContext =>
    new Proxy(context, {
      get(target, key) {
        if (key === "rng") {
          drew = true;
          atSites ||= site;
        }
        const value = Reflect.get(target, key) as unknown;
        if (key !== "statistic") return value;
        return (site: Site, statistic: Statistic) => {
          expect(allowed, `${method.id} asked for ${statistic}, which it does not declare`).toContain(statistic);
          return (value as (site: Site, statistic: Statistic) => unknown)(site, statistic);
        };
      },
    });
  return {
    drew: () => drew,
    drewAtSites: () => atSites,
    method: {
      ...method,
      init: (site, o, context, shared) => method.init(site, o, guard(context, true), shared),
      ...(method.shared ? { shared: (sites, o, context) => method.shared!(sites, o, guard(context)) } : {}),
    },
  };
}

/** Compares the gradients of a site with finite differences, in evaluation and with everything that training switches on. */
export async function siteGradients(subject: Subject, which: "input" | "parameters"): Promise<void> {
  const model = await stirred(subject);
  const set = attachedTo(model, "default")!;
  for (const training of [false, true]) {
    Object.assign(set.live, { training, rng: new Rng(8) });
    for (const site of byRole(subject)) {
      const x = siteInput(site, 3, (shape) => leaf(shape, 4));
      const params = [...trainables(set.entries.get(site.path)!), ...trainables(set.shared)].map(([, p]) => p);
      if (which === "parameters" && params.length === 0) continue;
      if (which === "parameters") await checkGradients(() => siteOutput(model, site, site.kind === "embedding" ? idsOf(site) : x), params);
      else if (site.kind !== "embedding") await checkGradients(() => siteOutput(model, site, x), [x]);
    }
  }
}

/** The loss's change along one random direction of all parameters at once. */
export async function directional(subject: Subject): Promise<void> {
  const model = await stirred(subject);
  const params = [...adapterParameters(attachedTo(model, "default")!).values()].filter((p) => p.trainable && isReal(p.dtype));
  const shape = noGrad(() => outputOf(model, subject.scaffold)).shape;
  const weights = tensor(sample(shape, 21), shape, "f64");
  const loss = (): Tensor => sum(mul(outputOf(model, subject.scaffold), weights));
  const gradients = backward(loss());
  const directions = params.map((p, i) => sample(p.shape, 30 + i));
  const starts = await Promise.all(params.map(numbers));
  let [expected, size] = [0, 0];
  for (const [i, p] of params.entries()) {
    const g = gradients.get(p);
    if (g)
      (await numbers(g)).forEach((value, j) => {
        expected += value * directions[i]![j]!;
        size += Math.abs(value * directions[i]![j]!);
      });
  }
  const at = async (step: number): Promise<number> => {
    params.forEach((p, i) =>
      p.assign(
        tensor(
          starts[i]!.map((value, j) => value + step * directions[i]![j]!),
          p.shape,
          "f64",
        ),
      ),
    );
    return noGrad(loss).item();
  };
  const numeric = ((await at(1e-6)) - (await at(-1e-6))) / 2e-6;
  expect(Math.abs(numeric - expected), `through the model: ${expected} for ${numeric}`).toBeLessThan(1e-5 * Math.max(1, size));
}
