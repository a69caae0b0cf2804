import { beforeAll, describe, expect, it } from "vitest";
import { dora, lora, type Adapter } from "../../src/adapters/index.ts";
import { adapters } from "../../src/catalog.ts";
import { start } from "../../src/tensor/index.ts";
import { sheets, type Sheet } from "./counts.ts";
import { adapterLaws } from "./laws.ts";
import { sitesFor, type Law, type Subject } from "./subject.ts";
import { baseOf, changedLeaves, scaffolds, type Scaffold } from "./scaffolds.ts";

/** Laws run whole on native kernels; WebAssembly and browsers take the first scaffold of each dtype, with the first options. */
const isThorough = globalThis.process?.versions?.node !== undefined && globalThis.process.env?.["STRUT_BACKEND"] !== "wasm";

/** A variant's options, with a rank that every site of the scaffold has room for. */
const fitting = ({ rank }: Sheet, options: Readonly<Record<string, unknown>>, { mostRank }: Scaffold): Record<string, unknown> =>
  rank === undefined ? { ...options } : { ...options, [rank]: Math.min(options[rank] as number, mostRank) };

async function subjectOf(method: Adapter, options: Readonly<Record<string, unknown>>, scaffold: Scaffold): Promise<Subject> {
  const sheet = sheets[method.id]!;
  const { model: base } = await baseOf(scaffold);
  const others = [lora, dora]
    .filter((other) => sitesFor(other, base).length > 0)
    .map((other) => ({ method: other as unknown as Adapter, options: fitting(sheets[other.id]!, sheets[other.id]!.variants[0]!, scaffold) }));
  return { method, sheet, options: fitting(sheet, options, scaffold), scaffold, base, sites: sitesFor(method, base), others };
}

/** A law on one scaffold; nothing may be written to the base. */
async function run(law: Law, method: Adapter, options: Readonly<Record<string, unknown>>, scaffold: Scaffold): Promise<void> {
  await law.check(await subjectOf(method, options, scaffold));
  expect(changedLeaves(await baseOf(scaffold)), "the base is never written").toEqual([]);
}

/** A sheet and words of it: name.md: "…" */
const quotes = /\w\.md: "[^"]{12,}"/;

const short = (options: Readonly<Record<string, unknown>>): string =>
  Object.entries(options)
    .map(([key, value]) => `${key} ${String(value)}`)
    .join(", ");

/** The first variant on every scaffold, the others on the first; `all`: on every engine, since what breaks a law may be a variant. */
function trials(method: Adapter, law: Law, all = isThorough): { options: Readonly<Record<string, unknown>>; scaffold: Scaffold }[] {
  const fit = scaffolds.filter(({ dtype, name }) => (law.only === undefined || law.only === dtype) && !sheets[method.id]?.skips?.includes(name));
  const [first, ...rest] = sheets[method.id]?.variants ?? [{}];
  if (law.few || !all)
    return [...new Map(fit.toReversed().map((scaffold) => [scaffold.dtype, scaffold])).values()].map((scaffold) => ({ options: first!, scaffold }));
  return [...fit.map((scaffold) => ({ options: first!, scaffold })), ...rest.map((options) => ({ options, scaffold: fit[0]! }))];
}

/** The laws over one part of the catalog: a file each, so that they run side by side. */
export async function lawsOfPart(part: number, parts: number): Promise<void> {
  const catalog = (await adapters()).filter((_, i) => i % parts === part);
  beforeAll(async () => {
    await start();
  });
  describe.each(catalog.map((method) => [method.id, method] as const))("%s", (id, method) => {
    it("has an entry in counts.ts that quotes its sheet", () => {
      expect(Object.keys(sheets), "add the method's formula to test/laws/counts.ts").toContain(id);
      expect(sheets[id]!.says).toMatch(/\.md: ".+"/);
      expect(sheets[id]!.variants.length).toBeGreaterThan(0);
    });

    const waived = new Map((method.waives ?? []).map(({ law, because }) => [law, because]));

    it.each([...waived])("waives a law that there is, and quotes the line that forces it: %s", (law, because) => {
      expect(
        adapterLaws.map(({ name }) => name),
        `${id} waives a law that does not exist`,
      ).toContain(law);
      expect(because, `the waiver of "${law}" must quote its sheet, such as: name.md: "…"`).toMatch(quotes);
    });

    for (const law of adapterLaws) {
      if (!waived.has(law.name))
        it.each(trials(method, law).map(({ options, scaffold }) => [law.name, scaffold.name, short(options), options, scaffold] as const))(
          "%s: %s (%s)",
          (_, __, ___, options, scaffold) => run(law, method, options, scaffold),
        );
      else
        it(`${law.name}: waived, and indeed broken`, async () => {
          const outcomes = await outcomesOf(
            trials(method, law, true).map(
              ({ options, scaffold }) =>
                () =>
                  run(law, method, options, scaffold),
            ),
          );
          expect(
            outcomes.some((outcome) => outcome !== undefined),
            `${id} keeps this law everywhere: remove the waiver`,
          ).toBe(true);
          for (const outcome of outcomes) if (outcome) expect((outcome as Error).name, String(outcome)).toBe("AssertionError");
        });
    }

    it.each((sheets[id]?.totals ?? []).map((total) => [total.says, total] as const))("has the total of the sheet: %s", (_, { options, sites, total }) => {
      const count = ([out, inner, times]: readonly [number, number, number]): number => times * sheets[id]!.count({ out, in: inner, kind: "linear" }, options);
      const every = sites.flatMap(([out, inner, times]) => Array.from({ length: times }, () => ({ out, in: inner, kind: "linear" as const })));
      expect(sites.reduce((all, site) => all + count(site), sheets[id]!.shared?.(every, options) ?? 0)).toBe(total);
    });
  });
}

/** The error of each body, in order; undefined where there was none. */
async function outcomesOf(bodies: readonly (() => Promise<void>)[]): Promise<unknown[]> {
  const outcomes: unknown[] = [];
  for (const body of bodies)
    outcomes.push(
      await body().then(
        () => undefined,
        (error: unknown) => error,
      ),
    );
  return outcomes;
}
