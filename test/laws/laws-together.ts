import { expect } from "vitest";
import { activate, adapt, loadAdapter, removeAdapter, saveAdapter, toLora } from "../../src/adapters/index.ts";
import { paths } from "../../src/formats/system.ts";
import type { LinearOperator } from "../../src/operators/index.ts";
import { singularValues } from "../../src/linalg/index.ts";
import { add, noGrad, sub } from "../../src/tensor/index.ts";
import { inFolder } from "./scaffolds.ts";
import { type Law, numbers, stir, stirred, output, distance, tolerance, byRole, expectSentence, rejection, mergedOf } from "./subject.ts";

const { join } = paths;

/** What adapters must do beside other adapters and what else trains. */
export const lawsTogether: readonly Law[] = [
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
    name: "converts to a LoRA, and loses what the spectrum beyond the rank holds",
    async check(subject) {
      const { method } = subject;
      const model = await stirred(subject);
      if (!method.update && !method.weight) {
        if (!method.copies) expectSentence(await rejection(toLora(model, { rank: 1 })));
        return;
      }
      const whole = await toLora(model, { rank: 99 });
      expect(distance(await output(whole.model, subject), await output(model, subject)), "at full rank").toBeLessThan(100 * tolerance(subject));
      const { error } = await toLora(model, { rank: 1, as: "one" });
      for (const site of byRole(subject)) {
        const { attached } = model.layers.get(site.path)!;
        const { update, weightAt } = attached.at(-1)!;
        const rest = attached.length > 1 ? (attached[0]!.weight as LinearOperator) : site.weight;
        const now = noGrad(() => (update ? add((weightAt?.(site) ?? rest).toDense(), update(site).toDense()) : weightAt!(site).toDense()));
        const change = noGrad(() => sub(now, site.weight.toDense()));
        const sigma = await numbers(await singularValues(change));
        const expected = Math.hypot(...sigma) === 0 ? 0 : Math.hypot(...sigma.slice(1)) / Math.hypot(...sigma);
        expect(Math.abs(error.sites.get(site.path)! - expected), site.path).toBeLessThan(Math.sqrt(tolerance(subject)));
      }
    },
  },
  {
    name: "stands beside trained biases, modules and tokens",
    async check(subject) {
      const { architecture, layers } = subject.base;
      if (!architecture.embedding) return;
      const [embedding, norm] = [architecture.embedding, [...layers.values()].find(({ spec }) => spec.kind === "norm")!.spec.path];
      const targets = subject.sites.map(({ path }) => path).filter((path) => layers.get(path)!.spec.kind !== "embedding");
      if (targets.length === 0) return;
      const extras = { bias: "all", modulesToSave: [norm], trainableTokenIndices: { [embedding]: [1, 3] } } as const;
      const model = stir(await adapt(subject.base, subject.method, subject.options, { targets, ...extras }));
      const merged = mergedOf(model);
      if (merged) expect(distance(await output(merged, subject), await output(model, subject))).toBeLessThan(tolerance(subject));
      await inFolder(async (folder) => {
        await saveAdapter(model, join(folder, "adapter"));
        const again = await loadAdapter(subject.base, join(folder, "adapter"), { methods: [subject.method, ...subject.others.map(({ method }) => method)] });
        expect(await output(again, subject)).toEqual(await output(model, subject));
      });
    },
  },
];
