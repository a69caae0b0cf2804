import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import {
  activate,
  adapt,
  adapterParameters,
  attachedTo,
  loadPeft,
  merge,
  removeAdapter,
  savePeft,
  unmerge,
  type Adapter,
  type InitContext,
} from "../../src/adapters/index.ts";
import { StrutError } from "../../src/errors.ts";
import { loadModel, saveModel, type Model } from "../../src/models/index.ts";
import { applyEmbedding, applyLinear } from "../../src/models/model.ts";
import { train } from "../../src/training/index.ts";
import type { Params, Site, Statistic } from "../../src/nn/contracts.ts";
import {
  add,
  backward,
  bytesOf,
  engine,
  full,
  isReal,
  mul,
  noGrad,
  Parameter,
  Rng,
  scope,
  start,
  stop,
  sum,
  tensor,
  toBytes,
  zeros,
  type Tensor,
} from "../../src/tensor/index.ts";
import { checkGradients, leaf, sample } from "../support/gradients.ts";
import type { Sheet } from "./counts.ts";
import { baseOf, inFolder, outputOf, zeroed, type Scaffold } from "./scaffolds.ts";

/** A method with options on a scaffold. */
export interface Subject {
  readonly method: Adapter;
  readonly sheet: Sheet;
  readonly options: Readonly<Record<string, unknown>>;
  readonly scaffold: Scaffold;
  readonly base: Model;
  /** Where the method can sit. */
  readonly sites: readonly Site[];
  /** Every adapter of the catalog that can sit on this scaffold, with options that fit it. */
  readonly others: readonly { method: Adapter; options: Readonly<Record<string, unknown>> }[];
}

/** What every method of a family must do. Waivers and the docs call a law by its name. */
export interface Law {
  readonly name: string;
  /** Left out where the numbers would be too coarse. */
  readonly only?: "f64";
  check(subject: Subject): Promise<void>;
}

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

const pathsOf = ({ method }: Pick<Subject, "method">, model: Model): string[] =>
  model.sites.filter(({ kind }) => method.kinds.includes(kind)).map(({ path }) => path);

export const sitesFor = (method: Adapter, model: Model): Site[] => model.sites.filter(({ kind }) => method.kinds.includes(kind));

interface Placement {
  base?: Model;
  name?: string;
  seed?: number;
  targets?: readonly string[];
  options?: Readonly<Record<string, unknown>>;
  method?: Adapter;
}

const put = (
  subject: Subject,
  { base = subject.base, name = "default", seed = 0, options = subject.options, method = subject.method, targets = pathsOf({ method }, base) }: Placement = {},
): Promise<Model> => adapt(base, method, options, { name, seed, targets });

/** Adds noise to every parameter that trains. */
function stir(model: Model, name = "default", seed = 5): Model {
  const rng = new Rng(seed);
  for (const [key, p] of adapterParameters(attachedTo(model, name)!))
    if (p.trainable && isReal(p.dtype)) {
      const { dtype } = p;
      p.assign(noGrad(() => scope(() => add(p, rng.fork(key).normal(p.shape, 0.3, dtype)))));
    }
  return model;
}

const stirred = async (subject: Subject, placement: Placement = {}): Promise<Model> => stir(await put(subject, placement), placement.name);

const output = (model: Model, { scaffold }: Subject): Promise<number[]> => numbers(noGrad(() => scope(() => outputOf(model, scaffold))));

/** Largest difference, relative to the largest number. NaN where one side has it alone. */
function distance(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length);
  const size = Math.max(1e-30, ...b.map(Math.abs));
  return Math.max(0, ...a.map((value, i) => Math.abs(value - b[i]!))) / size;
}

const tolerance = ({ scaffold }: Subject): number => (scaffold.dtype === "f64" ? 1e-11 : 1e-5);

/** A site's own output, whatever its kind. */
function siteOutput(model: Model, site: Site, x: Tensor): Tensor {
  if (site.kind === "embedding") return applyEmbedding(model, site.path, x, {});
  return applyLinear(model, site.path, x, {});
}

const idsOf = (site: Site): Tensor => tensor([0, site.out - 1, Math.floor(site.out / 2), 0], [2, 2], "i32");

/** One site of each role, for laws that look at sites one at a time. */
const byRole = ({ sites }: Subject): Site[] => [...new Map(sites.map((site) => [`${site.role} ${site.kind} ${site.out}×${site.in}`, site])).values()];

const trainables = (params: Params): [string, Parameter][] =>
  Object.entries(params).filter((entry): entry is [string, Parameter] => entry[1] instanceof Parameter && entry[1].trainable);

/** Runs something that must succeed or say in a sentence why it cannot. */
async function orSentence(body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (!(error instanceof StrutError)) throw error;
    expectSentence(error);
  }
}

function expectSentence(error: unknown): void {
  expect(error, "ends in a StrutError").toBeInstanceOf(StrutError);
  const { message } = error as StrutError;
  expect(message.length).toBeGreaterThan(15);
  expect(message).not.toMatch(/undefined|\[object/);
}

const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  );

/** Whether merging must work: every active method is a matrix, and what it adds to biases has a place in the base. */
const mergeable = (model: Model): boolean =>
  model.active.every((name) => {
    const { definition: method, entries, options } = attachedTo(model, name)!;
    return (
      method.update !== undefined &&
      [...entries].every(([path, p]) => model.layers.get(path)!.bias !== undefined || !method.bias?.(p, model.layers.get(path)!.site!, options as never))
    );
  });

/** The merged model, or undefined where merging rightly ends in a sentence. */
function mergedOf(model: Model): Model | undefined {
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
async function fingerprint(subject: Subject, placement: Placement = {}): Promise<{ values: Map<string, Uint8Array>; output: Uint8Array; outputs: number[] }> {
  const model = await put(subject, placement);
  const values = new Map([...adapterParameters(attachedTo(model, "default")!)].map(([key, p]) => [key, toBytes(p)]));
  stir(model);
  attachedTo(model, "default")!.live.training = true;
  const out = noGrad(() => outputOf(model, subject.scaffold));
  return { values, output: toBytes(out), outputs: await numbers(out) };
}

const sameBytes = (a: ReadonlyMap<string, Uint8Array>, b: ReadonlyMap<string, Uint8Array>): string[] =>
  [...a].filter(([key, bytes]) => !b.has(key) || Buffer.compare(bytes, b.get(key)!) !== 0).map(([key]) => key);

/** The subject's fingerprint on another engine; the usual one runs again afterwards. */
async function onEngine<T>(
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
function watched(method: Adapter): { method: Adapter; drew: () => boolean } {
  let drew = false;
  const allowed = new Set<Statistic>(method.needs ?? []);
  const guard = (context: InitContext): InitContext =>
    new Proxy(context, {
      get(target, key) {
        if (key === "rng") drew = true;
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
    method: {
      ...method,
      init: (site, o, context, shared) => method.init(site, o, guard(context), shared),
      ...(method.shared ? { shared: (sites, o, context) => method.shared!(sites, o, guard(context)) } : {}),
    },
  };
}

/** Compares the gradients of a site with finite differences, in evaluation and with everything that training switches on. */
async function siteGradients(subject: Subject, which: "input" | "parameters"): Promise<void> {
  const model = await stirred(subject);
  const set = attachedTo(model, "default")!;
  for (const training of [false, true]) {
    Object.assign(set.live, { training, rng: new Rng(8) });
    for (const site of byRole(subject)) {
      const x = leaf([3, site.in], 4);
      const params = [...trainables(set.entries.get(site.path)!), ...trainables(set.shared)].map(([, p]) => p);
      if (which === "parameters") await checkGradients(() => siteOutput(model, site, site.kind === "embedding" ? idsOf(site) : x), params);
      else if (site.kind !== "embedding") await checkGradients(() => siteOutput(model, site, x), [x]);
    }
  }
}

/** The loss's change along one random direction of all parameters at once. */
async function directional(subject: Subject): Promise<void> {
  const model = await stirred(subject);
  const params = [...adapterParameters(attachedTo(model, "default")!).values()].filter((p) => p.trainable && isReal(p.dtype));
  const shape = noGrad(() => outputOf(model, subject.scaffold)).shape;
  const weights = tensor(sample(shape, 21), shape, "f64");
  const loss = (): Tensor => sum(mul(outputOf(model, subject.scaffold), weights));
  const gradients = backward(loss());
  const directions = params.map((p, i) => sample(p.shape, 30 + i));
  const starts = await Promise.all(params.map(numbers));
  let expected = 0;
  for (const [i, p] of params.entries()) {
    const g = gradients.get(p);
    if (g) (await numbers(g)).forEach((value, j) => (expected += value * directions[i]![j]!));
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
  expect(Math.abs(numeric - expected), `through the model: ${expected} for ${numeric}`).toBeLessThan(1e-5 * Math.max(1, Math.abs(numeric)));
}

/** What every adapter must do. */
export const adapterLaws: readonly Law[] = [
  {
    name: "starts at the base",
    async check(subject) {
      expect(distance(await output(await put(subject), subject), await output(subject.base, subject))).toBeLessThanOrEqual(tolerance(subject) / 10);
    },
  },
  {
    name: "merged equals adapted",
    async check(subject) {
      const model = await stirred(subject);
      expect(distance(await output(model, subject), await output(subject.base, subject)), "the noise must be felt").toBeGreaterThan(1e-3);
      const merged = mergedOf(model);
      if (merged) expect(distance(await output(merged, subject), await output(model, subject))).toBeLessThan(tolerance(subject));
    },
  },
  {
    name: "unmerging restores the base, through the disk",
    async check(subject) {
      const { base, scaffold } = subject;
      const model = await stirred(subject);
      const merged = mergedOf(model);
      if (!merged) return;
      const back = await inFolder(async (folder) => {
        await saveModel(merged, join(folder, "merged"));
        return unmerge(await loadModel(join(folder, "merged"), { dtype: scaffold.dtype }), model);
      });
      for (const [path, layer] of base.layers) {
        const restored = back.layers.get(path)!;
        expect(distance(await numbers(restored.weight), await numbers(layer.weight)), `${path}.weight`).toBeLessThan(tolerance(subject));
        if (layer.bias) expect(distance(await numbers(restored.bias!), await numbers(layer.bias)), `${path}.bias`).toBeLessThan(tolerance(subject));
      }
    },
  },
  {
    name: "merged inference costs what the base costs",
    async check(subject) {
      const merged = mergedOf(await stirred(subject));
      if (!merged) return;
      expect(merged.adapters.size).toBe(0);
      for (const [path, { spec, site, weight, bias }] of subject.base.layers) {
        const now = merged.layers.get(path)!;
        expect(now.attached, path).toEqual([]);
        expect([now.weight.shape, now.weight.dtype, now.bias?.shape, now.spec.transposed], path).toEqual([
          weight.shape,
          weight.dtype,
          bias?.shape,
          spec.transposed,
        ]);
        expect(now.site?.weight.cost(), path).toEqual(site?.weight.cost());
        expect(now.site?.weight.kind, path).toBe(site?.weight.kind);
      }
    },
  },
  {
    name: "costs what it stores",
    async check(subject) {
      const model = await stirred(subject);
      for (const site of byRole(subject)) {
        const update = model.layers.get(site.path)!.attached[0]!.update?.(site);
        expect(update === undefined).toBe(subject.method.update === undefined);
        if (!update) continue;
        expect([update.out, update.in, noGrad(() => update.toDense()).shape], site.path).toEqual([site.out, site.in, [site.out, site.in]]);
        const parts = Object.values(update.parts);
        const cost = update.cost();
        expect(cost.params, site.path).toBe(parts.reduce((total, part) => total + part.size, 0));
        expect(cost.bytes, site.path).toBeGreaterThanOrEqual(parts.reduce((total, part) => total + part.size * bytesOf(part.dtype), 0));
        expect(cost.flops, site.path).toBeGreaterThanOrEqual(0);
      }
    },
  },
  {
    name: "counts as its sheet does",
    async check({ method, sheet, options, sites, ...rest }) {
      const set = attachedTo(await put({ method, sheet, options, sites, ...rest }), "default")!;
      const count = (params: Params): number => trainables(params).reduce((total, [, p]) => total + p.size, 0);
      for (const site of sites) expect(count(set.entries.get(site.path)!), site.path).toBe(sheet.count(site, set.options));
      expect(count(set.shared), "shared").toBe(sheet.shared?.(sites, set.options) ?? 0);
      const once = [...adapterParameters(set).values()].filter((p) => p.trainable);
      expect(once.reduce((total, p) => total + p.size, 0)).toBe(
        sites.reduce((total, site) => total + sheet.count(site, set.options), 0) + (sheet.shared?.(sites, set.options) ?? 0),
      );
      expect(
        once.every((p) => p.dtype === rest.scaffold.dtype),
        "parameters have the model's dtype",
      ).toBe(true);
    },
  },
  {
    name: "saves and loads, byte for byte",
    async check(subject) {
      const model = await stirred(subject);
      await inFolder(async (folder) => {
        await savePeft(model, join(folder, "first"));
        const methods = [subject.method, ...subject.others.map(({ method }) => method)];
        const again = await loadPeft(subject.base, join(folder, "first"), { methods });
        expect(await output(again, subject)).toEqual(await output(model, subject));
        await savePeft(again, join(folder, "second"));
        for (const file of ["adapter_model.safetensors", "adapter_config.json"])
          expect((await readFile(join(folder, "first", file))).equals(await readFile(join(folder, "second", file))), file).toBe(true);
        const [before, after] = [model, again].map((of) =>
          [...adapterParameters(attachedTo(of, "default")!)].map(([key, p]) => `${key} ${p.dtype} [${p.shape}]`),
        );
        expect(after!.sort(), "the same parameters").toEqual(before!.sort());
        expect(Object.keys(attachedTo(again, "default")!.regime ?? {}), "its regime comes back").toEqual(
          Object.keys(attachedTo(model, "default")!.regime ?? {}),
        );
      });
    },
  },
  {
    name: "gradients of its input match finite differences",
    only: "f64",
    check: (subject) => siteGradients(subject, "input"),
  },
  {
    name: "gradients of its parameters match finite differences",
    only: "f64",
    async check(subject) {
      await siteGradients(subject, "parameters");
      await directional(subject);
    },
  },
  {
    name: "recomputing in backward changes nothing",
    async check(subject) {
      const model = await stirred(subject);
      const set = attachedTo(model, "default")!;
      Object.assign(set.live, { training: true, rng: new Rng(8) });
      const gradients = (recompute: boolean): Map<string, Uint8Array> => {
        const found = backward(sum(outputOf(model, subject.scaffold, { recompute })));
        return new Map([...adapterParameters(set)].flatMap(([key, p]) => (found.has(p) ? [[key, toBytes(found.get(p)!)] as const] : [])));
      };
      const plain = gradients(false);
      expect(sameBytes(plain, gradients(true))).toEqual([]);
      expect(plain.size, "some parameter has a gradient").toBeGreaterThan(0);
    },
  },
  {
    name: "same seed, same numbers; another seed, others",
    async check(subject) {
      const { method, drew } = watched(subject.method);
      const [first, second, other] = [await fingerprint(subject, { method }), await fingerprint(subject), await fingerprint(subject, { seed: 1 })];
      expect(sameBytes(first.values, second.values)).toEqual([]);
      expect(Buffer.compare(first.output, second.output)).toBe(0);
      expect(sameBytes(first.values, other.values).length > 0, "another seed gives other values exactly where random numbers are drawn").toBe(drew());
    },
  },
  {
    name: "same numbers at any thread count, and near them on any backend",
    async check(subject) {
      const here = await fingerprint(subject);
      const one = await onEngine({ backend: "native", threads: 1 }, subject, (s) => fingerprint(s));
      const two = await onEngine({ backend: "native", threads: 2 }, subject, (s) => fingerprint(s));
      if (one && two) {
        expect(sameBytes(one.values, two.values)).toEqual([]);
        expect(Buffer.compare(one.output, two.output)).toBe(0);
      }
      for (const backend of ["wasm", "reference"] as const) {
        const there = await onEngine({ backend }, subject, (s) => fingerprint(s));
        if (there) expect(distance(there.outputs, here.outputs), `${backend} beside ${engine().backend.name}`).toBeLessThan(1e-4);
      }
    },
  },
  {
    name: "a site's values do not depend on other sites",
    async check(subject) {
      const all = subject.sites.map(({ path }) => path);
      const { method, drew } = watched(subject.method);
      const values = async (targets: readonly string[], path: string): Promise<Map<string, Uint8Array>> => {
        const set = attachedTo(await put(subject, { targets, method }), "default")!;
        return new Map(Object.entries(set.entries.get(path)!).map(([key, p]) => [key, toBytes(p)]));
      };
      for (const path of [all[0]!, all.at(-1)!]) expect(sameBytes(await values([path], path), await values(all, path)), path).toEqual([]);
      const twins = subject.sites.filter((site) => site.role === subject.sites.at(-2)!.role && site.kind === subject.sites.at(-2)!.kind);
      if (twins.length > 1 && drew())
        expect(sameBytes(await values(all, twins[0]!.path), await values(all, twins[1]!.path)), "sites draw numbers of their own").not.toEqual([]);
    },
  },
  {
    name: "declared needs suffice",
    async check(subject) {
      await put(subject, { method: watched(subject.method).method });
    },
  },
  {
    name: "a resumed run is the same run",
    async check(subject) {
      const batches = [subject.scaffold.ids, subject.scaffold.ids.map((row) => [...row].reverse())].map((ids) => ({ ids }));
      await inFolder(async (folder) => {
        const course = { batches, steps: 4, learningRate: 0.02, accumulate: 2, clip: 1, seed: 3 };
        const trained = async (options: Partial<Parameters<typeof train>[1]>): Promise<Map<string, Uint8Array>> => {
          const { model } = await train(await put(subject), { ...course, ...options });
          return new Map([...adapterParameters(attachedTo(model, "default")!)].map(([key, p]) => [key, toBytes(p)]));
        };
        const straight = await trained({ checkpoint: { dir: folder, every: 2, keep: 9 } });
        const resumed = await trained({ resume: join(folder, "step-0000002") });
        expect(sameBytes(straight, resumed)).toEqual([]);
        const untrained = await fingerprint(subject);
        expect(sameBytes(straight, untrained.values).length, "training moves something").toBeGreaterThan(0);
      });
    },
  },
  {
    name: "every rank works or ends in a sentence",
    async check(subject) {
      const { rank } = subject.sheet;
      if (rank === undefined) return;
      for (const site of byRole(subject)) {
        const most = Math.min(site.out, site.in);
        const targets = [site.path];
        const model = await stirred(subject, { targets, options: { ...subject.options, [rank]: most } });
        const merged = mergedOf(model);
        if (merged)
          expect(distance(await output(merged, subject), await output(model, subject)), `${site.path} at rank ${most}`).toBeLessThan(tolerance(subject));
        for (const wrong of [0, most + 1, -1, 1.5, NaN, Infinity])
          expectSentence(await rejection(put(subject, { targets, options: { ...subject.options, [rank]: wrong } })));
      }
    },
  },
  {
    name: "a zero base gives finite numbers or a sentence",
    check: (subject) =>
      orSentence(async () => {
        const base = zeroed(subject.base);
        const model = await put(subject, { base });
        expect(distance(await output(model, subject), await output(base, subject))).toBeLessThanOrEqual(tolerance(subject) / 10);
        stir(model);
        const adapted = await output(model, subject);
        expect(adapted.every(Number.isFinite)).toBe(true);
        const merged = mergedOf(model);
        if (merged) expect(distance(await output(merged, subject), adapted)).toBeLessThan(tolerance(subject));
        const params = [...adapterParameters(attachedTo(model, "default")!).values()];
        for (const p of params) if (p.trainable && isReal(p.dtype)) p.assign(zeros(p.shape, p.dtype));
        expect((await output(model, subject)).every(Number.isFinite), "all parameters zero").toBe(true);
        for (const gradient of backward(sum(outputOf(model, subject.scaffold))).values())
          expect((await numbers(gradient)).every(Number.isFinite), "gradients at zero").toBe(true);
      }),
  },
  {
    name: "zero and non-finite inputs pass through",
    async check(subject) {
      const model = await stirred(subject);
      const merged = mergedOf(model);
      for (const site of byRole(subject)) {
        if (site.kind === "embedding") continue;
        const { dtype } = subject.scaffold;
        const zero = zeros([2, site.in], dtype);
        const y = await numbers(noGrad(() => siteOutput(model, site, zero)));
        expect(y.every(Number.isFinite), `${site.path}: zero input`).toBe(true);
        if (merged) expect(distance(y, await numbers(noGrad(() => siteOutput(merged, site, zero)))), site.path).toBeLessThan(tolerance(subject));
        expect((await numbers(noGrad(() => siteOutput(model, site, zeros([0, site.in], dtype))))).length, "no rows").toBe(0);
        for (const value of [NaN, Infinity, -Infinity]) {
          const bad = noGrad(() => siteOutput(model, site, full([2, site.in], value, dtype)));
          expect(
            (await numbers(bad)).every((n) => !Number.isFinite(n)),
            `${site.path}: ${value} stays visible`,
          ).toBe(true);
        }
      }
    },
  },
  {
    name: "adapters stack, switch and come off",
    async check(subject) {
      const plain = await output(subject.base, subject);
      for (const { method, options } of subject.others) {
        const first = await stirred(subject, { name: "first" });
        const alone = await output(first, subject);
        const both = await stirred(subject, { base: first, name: "second", method, options });
        expect(both.active).toEqual(["second"]);
        expect(await output(activate(both, ["first"]), subject), "the first alone").toEqual(alone);
        expect(await output(activate(both, []), subject), "none").toEqual(plain);
        expect(await output(activate(removeAdapter(both, "second"), ["first"]), subject), "the second removed").toEqual(alone);
        expect(await output(removeAdapter(removeAdapter(both, "first"), "second"), subject), "both removed").toEqual(plain);
        const together = await output(activate(both, ["first", "second"]), subject);
        expect(together.every(Number.isFinite)).toBe(true);
        expect(distance(together, alone), `${method.id} on top is felt`).toBeGreaterThan(1e-4);
        const merged = mergedOf(activate(both, ["first", "second"]));
        if (merged) expect(distance(await output(merged, subject), together), `merged with ${method.id} on top`).toBeLessThan(tolerance(subject));
      }
    },
  },
  {
    name: "stands beside trained biases, modules and tokens",
    async check(subject) {
      const { architecture, layers } = subject.base;
      const [embedding, norm] = [architecture.embedding, [...layers.values()].find(({ spec }) => spec.kind === "norm")!.spec.path];
      const targets = subject.sites.map(({ path }) => path).filter((path) => layers.get(path)!.spec.kind !== "embedding");
      if (targets.length === 0) return;
      const extras = { bias: "all", modulesToSave: [norm], trainableTokenIndices: { [embedding]: [1, 3] } } as const;
      const model = stir(await adapt(subject.base, subject.method, subject.options, { targets, ...extras }));
      const merged = mergedOf(model);
      if (merged) expect(distance(await output(merged, subject), await output(model, subject))).toBeLessThan(tolerance(subject));
      await inFolder(async (folder) => {
        await savePeft(model, join(folder, "adapter"));
        const again = await loadPeft(subject.base, join(folder, "adapter"), { methods: [subject.method, ...subject.others.map(({ method }) => method)] });
        expect(await output(again, subject)).toEqual(await output(model, subject));
      });
    },
  },
];
