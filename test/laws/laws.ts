import { expect } from "vitest";
import { adapterParameters, attachedTo, loadAdapter, saveAdapter, unmerge } from "../../src/adapters/index.ts";
import { files, paths } from "../../src/formats/system.ts";
import { loadModel, saveModel } from "../../src/models/index.ts";
import { train } from "../../src/training/index.ts";
import type { Params } from "../../src/nn/contracts.ts";
import { backward, bytesOf, engine, full, isReal, noGrad, Rng, sum, toBytes, zeros } from "../../src/tensor/index.ts";
import { equalBytes } from "../support/bytes.ts";
import { courseOf, inFolder, outputOf, siteInput, zeroed } from "./scaffolds.ts";
import {
  type Law,
  numbers,
  put,
  stir,
  stirred,
  output,
  distance,
  tolerance,
  siteOutput,
  byRole,
  trainables,
  orSentence,
  expectSentence,
  rejection,
  mergedOf,
  fingerprint,
  sameBytes,
  onEngine,
  watched,
  siteGradients,
  directional,
} from "./subject.ts";
import { lawsTogether } from "./laws-together.ts";

const { join } = paths;

/** What every adapter must do. */
export const adapterLaws: readonly Law[] = [
  {
    name: "starts at the base",
    async check(subject) {
      // a start that the base gives away is subtracted and added again
      const slack = subject.method.start ? 1 : 10;
      expect(distance(await output(await put(subject), subject), await output(subject.base, subject))).toBeLessThanOrEqual(tolerance(subject) / slack);
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
        const update = model.layers.get(site.path)!.attached.at(-1)!.update?.(site);
        expect(update === undefined).toBe(subject.method.update === undefined);
        if (!update) continue;
        expect([update.out, update.in, noGrad(() => update.toDense()).shape], site.path).toEqual([site.out, site.in, [site.out, site.in]]);
        const parts = Object.values(update.parts);
        const cost = update.cost();
        expect(cost.params, site.path).toBe(parts.reduce((total, part) => total + (isReal(part.dtype) ? part.size : 0), 0));
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
      const layers = [...rest.base.layers.values()];
      const copied =
        sheet.copies?.(
          layers.map(({ spec, weight, bias }) => ({ weight: spec.tiedTo ? 0 : weight.size, bias: bias?.size ?? 0, norm: spec.kind === "norm" })),
        ) ?? 0;
      expect(once.reduce((total, p) => total + p.size, 0)).toBe(
        sites.reduce((total, site) => total + sheet.count(site, set.options), 0) + (sheet.shared?.(sites, set.options) ?? 0) + copied,
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
        await saveAdapter(model, join(folder, "first"));
        const methods = [subject.method, ...subject.others.map(({ method }) => method)];
        const again = await loadAdapter(subject.base, join(folder, "first"), { methods });
        expect(await output(again, subject)).toEqual(await output(model, subject));
        await saveAdapter(again, join(folder, "second"));
        for (const file of await files.readdir(join(folder, "first")))
          expect(equalBytes(await files.readFile(join(folder, "first", file)), await files.readFile(join(folder, "second", file))), file).toBe(true);
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
      const [plain, again] = [gradients(false), gradients(true)];
      // what sites share adds up block by block, so in another order
      const shared = (key: string): boolean => key.startsWith("default/shared/");
      expect(sameBytes(plain, again).filter((key) => !shared(key))).toEqual([]);
      const view = (bytes: Uint8Array): number[] => Array.from(new (subject.scaffold.dtype === "f64" ? Float64Array : Float32Array)(bytes.slice().buffer));
      for (const [key, bytes] of plain) if (shared(key)) expect(distance(view(again.get(key)!), view(bytes)), key).toBeLessThan(tolerance(subject));
      expect(plain.size, "some parameter has a gradient").toBeGreaterThan(0);
    },
  },
  {
    name: "same seed, same numbers; another seed, others",
    async check(subject) {
      const { method, drew } = watched(subject.method);
      const [first, second, other] = [await fingerprint(subject, { method }), await fingerprint(subject), await fingerprint(subject, { seed: 1 })];
      expect(sameBytes(first.values, second.values)).toEqual([]);
      expect(equalBytes(first.output, second.output)).toBe(true);
      expect(sameBytes(first.values, other.values).length > 0, "another seed gives other values exactly where random numbers are drawn").toBe(drew());
    },
  },
  {
    name: "same numbers at any thread count, and near them on any backend",
    few: true,
    async check(subject) {
      const here = await fingerprint(subject);
      for (const backend of ["native", "wasm"] as const) {
        const one = await onEngine({ backend, threads: 1 }, subject, (s) => fingerprint(s));
        const two = await onEngine({ backend, threads: 2 }, subject, (s) => fingerprint(s));
        if (!one || !two) continue;
        expect(sameBytes(one.values, two.values), backend).toEqual([]);
        expect(equalBytes(one.output, two.output), backend).toBe(true);
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
      if (subject.method.copies?.weight || subject.method.copies?.bias) return; // it has no values at sites
      const all = subject.sites.map(({ path }) => path);
      const { method, drewAtSites } = watched(subject.method);
      const values = async (targets: readonly string[], path: string): Promise<Map<string, Uint8Array>> => {
        const set = attachedTo(await put(subject, { targets, method }), "default")!;
        return new Map(Object.entries(set.entries.get(path)!).map(([key, p]) => [key, toBytes(p)]));
      };
      for (const path of [all[0]!, all.at(-1)!]) expect(sameBytes(await values([path], path), await values(all, path)), path).toEqual([]);
      if (subject.sites.length < 2) return;
      const twins = subject.sites.filter((site) => site.role === subject.sites.at(-2)!.role && site.kind === subject.sites.at(-2)!.kind);
      if (twins.length > 1 && drewAtSites())
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
      await inFolder(async (folder) => {
        const course = { ...courseOf(subject.scaffold), steps: 4, learningRate: 0.02, accumulate: 2, clip: 1, seed: 3 };
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
        const whole = { ...subject.options, [rank]: most };
        // a method may also want a divisor
        const refusal = await rejection(put(subject, { targets, options: whole }));
        if (refusal) {
          expectSentence(refusal);
          continue;
        }
        const model = await stirred(subject, { targets, options: whole });
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
        if (!subject.method.waives?.some(({ law }) => law === "starts at the base"))
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
        const zero = siteInput(site, 2, (shape) => zeros(shape, dtype));
        const y = await numbers(noGrad(() => siteOutput(model, site, zero)));
        expect(y.every(Number.isFinite), `${site.path}: zero input`).toBe(true);
        if (merged) expect(distance(y, await numbers(noGrad(() => siteOutput(merged, site, zero)))), site.path).toBeLessThan(tolerance(subject));
        expect(
          (
            await numbers(
              noGrad(() =>
                siteOutput(
                  model,
                  site,
                  siteInput(site, 0, (shape) => zeros(shape, dtype)),
                ),
              ),
            )
          ).length,
          "no rows",
        ).toBe(0);
        for (const value of [NaN, Infinity, -Infinity]) {
          const bad = noGrad(() =>
            siteOutput(
              model,
              site,
              siteInput(site, 2, (shape) => full(shape, value, dtype)),
            ),
          );
          expect(
            (await numbers(bad)).every((n) => !Number.isFinite(n)),
            `${site.path}: ${value} stays visible`,
          ).toBe(true);
        }
      }
    },
  },
  ...lawsTogether,
];
