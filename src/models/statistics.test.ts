import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { baseOf, inFolder, scaffolds, zeroed, type Scaffold } from "../../test/laws/scaffolds.ts";
import type { Observer, Site, Statistic } from "../nn/contracts.ts";
import { backward, engine, noGrad, Parameter, scale, start, stopGradient, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { languageModelLoss } from "../training/index.ts";
import type { CalibrationBatch } from "./calibration.ts";
import { unfreeze, withLeaves } from "./change.ts";
import { forward, parameters, type Model } from "./model.ts";
import type { SiteStatistics } from "./recorder.ts";
import { collectStatistics, type Statistics, type StatisticsOptions } from "./statistics.ts";
import { loadStatistics, saveStatistics } from "./statistics-file.ts";

beforeAll(() => start());

const [llama, , gpt2] = scaffolds as [Scaffold, Scaffold, Scaffold];
const modelOf = async (scaffold: Scaffold): Promise<Model> => (await baseOf(scaffold)).model;
const numbers = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number);
const q = (i: number): string => `model.layers.${i}.self_attn.q_proj`;
const sums: Statistic[] = ["inputGram", "inputMean", "inputAbsMean", "inputNorm"];
const batches: CalibrationBatch[] = [
  {
    ids: [
      [3, 1, 4, 1, 5],
      [9, 2, 6, 5, 3],
    ],
  },
  { ids: [[5, 8, 9, 7, 9]] },
  {
    ids: [
      [7, 2, 3, 8, 4],
      [6, 2, 6, 4, 3],
    ],
  },
];
const joined: CalibrationBatch = { ids: batches.flatMap(({ ids }) => ids) };

/** |a − b| relative to the largest of b. */
function close(a: readonly number[], b: readonly number[], tolerance = 1e-12): void {
  expect(a.length).toBe(b.length);
  const size = Math.max(1e-300, ...b.map(Math.abs));
  expect(Math.max(0, ...a.map((x, i) => Math.abs(x - b[i]!))) / size).toBeLessThan(tolerance);
}

async function same(a: SiteStatistics, b: SiteStatistics, tolerance = 1e-12): Promise<void> {
  expect(a.rows).toBe(b.rows);
  const names = (s: SiteStatistics): string[] => Object.keys(s).sort();
  expect(names(a)).toEqual(names(b));
  for (const [name, value] of Object.entries(a))
    if (typeof value === "object") close(await numbers(value as Tensor), await numbers(b[name as Statistic]!), tolerance);
}

const allSame = async (a: Statistics, b: Statistics, tolerance?: number): Promise<void> => {
  expect([...a.sites.keys()]).toEqual([...b.sites.keys()]);
  expect([a.tokens, a.sequences]).toEqual([b.tokens, b.sequences]);
  for (const [path, statistics] of a.sites) await same(statistics, b.sites.get(path)!, tolerance);
};

/** The rows that each linear site sees, by the plain forward pass. */
function rowsOf(model: Model, list: readonly CalibrationBatch[]): Map<string, number[][]> {
  const rows = new Map<string, number[][]>();
  const input = (site: Site, x: Tensor): void => {
    if (site.kind === "embedding") return;
    const values = Array.from({ length: x.size }, (_, i) => Number((x.contiguous ? viewOf(x) : [])[i]));
    const here = rows.get(site.path) ?? [];
    rows.set(site.path, here);
    for (let r = 0; r < values.length; r += site.in) here.push(values.slice(r, r + site.in));
  };
  for (const { ids } of list)
    noGrad(() =>
      forward(
        model,
        tensor(
          ids.flatMap((row) => Array.from(row)),
          [ids.length, ids[0]!.length],
          "i32",
        ),
        { observer: { input } },
      ),
    );
  return rows;
}
const viewOf = (x: Tensor): Float64Array => {
  const { buffer, byteOffset } = engine().backend.locate(x.block);
  return x.dtype === "f64"
    ? new Float64Array(buffer, byteOffset + 8 * x.offset, x.size)
    : Float64Array.from(new Float32Array(buffer, byteOffset + 4 * x.offset, x.size));
};

/** The sums of some rows by plain loops. */
function plain(rows: readonly number[][]): Record<string, number[]> {
  const n = rows[0]!.length;
  const over = (f: (row: number[]) => number): number => rows.reduce((sum, row) => sum + f(row), 0);
  const each = (f: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => f(i));
  return {
    inputGram: each((i) => i).flatMap((i) => each((j) => over((row) => row[i]! * row[j]!))),
    inputMean: each((i) => over((row) => row[i]!) / rows.length),
    inputAbsMean: each((i) => over((row) => Math.abs(row[i]!)) / rows.length),
    inputNorm: each((i) => Math.sqrt(over((row) => row[i]! ** 2))),
  };
}

describe("statistics of inputs", () => {
  it.each(scaffolds.filter(({ images }) => !images))("are the sums of plain loops at every linear site: $name", async (scaffold) => {
    const model = await modelOf(scaffold);
    const list = [{ ids: scaffold.ids }, { ids: scaffold.ids.slice(1) }];
    const linear = ({ kind }: Site): boolean => kind === "linear";
    const { sites, tokens, sequences } = await collectStatistics(model, list, { wants: sums, sites: linear });
    expect([tokens, sequences]).toEqual([15, 3]);
    const rows = rowsOf(model, list);
    expect([...sites.keys()].sort()).toEqual([...rows.keys()].sort());
    for (const [path, found] of sites) {
      expect(found.rows).toBe(15);
      for (const [name, expected] of Object.entries(plain(rows.get(path)!))) close(await numbers(found[name as Statistic]!), expected);
    }
  });

  it("have Gram matrices of f32 products that err by 1e-6 where those are asked for, over many rows", async () => {
    const model = await modelOf(scaffolds[1]!);
    const long = Array.from({ length: 90 }, (_, i) => ({ ids: Array.from({ length: 8 }, (_r, r) => Array.from({ length: 15 }, (_c, c) => (i * r + c) % 11)) }));
    const exact = await collectStatistics(model, [{ ids: long.flatMap(({ ids }) => ids) }], { wants: ["inputGram"] });
    const quick = await collectStatistics(model, long, { wants: ["inputGram"], products: "f32" });
    await allSame(quick, exact, 1e-6);
    await expect(allSame(quick, exact, 1e-12)).rejects.toThrow();
  });

  it("do not depend on how the data is cut into batches, and an asynchronous source gives the same", async () => {
    const model = await modelOf(llama);
    const options: StatisticsOptions = { wants: [...sums, "inputs", "idCounts", "outputGradientGram", "outputGradientNorm", "weightGradient"], inputRows: 7 };
    const whole = await collectStatistics(model, [joined], options);
    await allSame(await collectStatistics(model, batches, options), whole);
    async function* later() {
      for (const batch of batches) yield await Promise.resolve(batch);
    }
    await allSame(await collectStatistics(model, later(), options), whole);
  });

  it("are shared by the layers that share an input", async () => {
    const { sites } = await collectStatistics(await modelOf(llama), batches, { wants: sums });
    const gram = (name: string): Tensor => sites.get(`model.layers.1.${name}`)!.inputGram!;
    expect(gram("self_attn.k_proj")).toBe(gram("self_attn.q_proj"));
    expect(gram("self_attn.v_proj")).toBe(gram("self_attn.q_proj"));
    expect(gram("mlp.up_proj")).toBe(gram("mlp.gate_proj"));
    expect(sites.get("model.layers.1.mlp.up_proj")!.input).toBe("model.layers.1.mlp.gate_proj");
    expect(new Set([...sites.values()].map(({ inputGram }) => inputGram)).size).toBe(2 * 4);
  });

  it.each([llama, gpt2])("leave out masked tokens: padded rows count like the rows without their padding, $name", async (scaffold) => {
    const model = await modelOf(scaffold);
    const wants: Statistic[] = [...sums, "inputs", "idCounts", "outputGradientGram", "outputGradientMean", "weightGradient", "weightTimesGradient"];
    const padded = await collectStatistics(
      model,
      [
        {
          ids: [
            [3, 1, 4, 1, 5],
            [9, 2, 6, 0, 0],
          ],
          mask: [
            [1, 1, 1, 1, 1],
            [1, 1, 1, 0, 0],
          ],
        },
      ],
      { wants, inputRows: 20 },
    );
    const bare = await collectStatistics(model, [{ ids: [[3, 1, 4, 1, 5]] }, { ids: [[9, 2, 6]] }], { wants, inputRows: 20 });
    expect(padded.tokens).toBe(8);
    await allSame(padded, bare);
  });

  it("keep the first rows, or a reservoir of rows where each has its chance", async () => {
    const model = await modelOf(llama);
    const site = q(1);
    const rows = rowsOf(model, batches).get(site)!;
    const kept = async (options: Partial<StatisticsOptions>): Promise<number[][]> => {
      const { sites } = await collectStatistics(model, batches, { wants: ["inputs"], sites: [site], ...options });
      const values = await numbers(sites.get(site)!.inputs!);
      return Array.from({ length: values.length / 8 }, (_, i) => values.slice(8 * i, 8 * i + 8));
    };
    expect(await kept({ inputRows: 6, inputSample: "first" })).toEqual(rows.slice(0, 6));
    expect(await kept({})).toEqual(rows);
    const [one, two, other] = [await kept({ inputRows: 6 }), await kept({ inputRows: 6 }), await kept({ inputRows: 6, seed: 1 })];
    expect(one).toEqual(two);
    expect(one).not.toEqual(other);
    const places = one.map((row) => rows.findIndex((candidate) => String(candidate) === String(row)));
    expect(new Set(places).size).toBe(6);
    expect(Math.min(...places)).toBeGreaterThanOrEqual(0);
    const chosen = new Array<number>(rows.length).fill(0);
    for (let seed = 0; seed < 60; seed++)
      for (const row of await kept({ inputRows: 6, seed })) chosen[rows.findIndex((candidate) => String(candidate) === String(row))]!++;
    // 360 draws from 25 rows: 14.4 each
    expect(Math.min(...chosen)).toBeGreaterThan(3);
    expect(Math.max(...chosen)).toBeLessThan(30);
  });

  it("count how often each row of an embedding is looked up, positions too", async () => {
    const { sites } = await collectStatistics(await modelOf(gpt2), batches, { wants: ["idCounts"] });
    const ids = joined.ids.flatMap((row) => Array.from(row));
    expect(await numbers(sites.get("transformer.wte")!.idCounts!)).toEqual(Array.from({ length: 11 }, (_, id) => ids.filter((x) => x === id).length));
    expect(await numbers(sites.get("transformer.wpe")!.idCounts!)).toEqual([5, 5, 5, 5, 5, 0, 0, 0]);
    expect(sites.get("transformer.wpe")!.rows).toBe(25);
  });

  it("come from the teacher's network where one is asked for", async () => {
    const [model, teacher] = [zeroed(await modelOf(llama)), await modelOf(llama)];
    const options: StatisticsOptions = { wants: sums, sites: [q(1), "lm_head"] };
    await allSame(await collectStatistics(model, batches, { ...options, stream: "teacher", teacher }), await collectStatistics(teacher, batches, options));
  });

  it("hold no more memory for more batches", async () => {
    const model = await modelOf(llama);
    const { pool } = engine();
    const peak = async (times: number): Promise<number> => {
      const list = Array.from({ length: times }, () => batches[0]!);
      const before = (pool.peakBytes = pool.usedBytes);
      await collectStatistics(model, list, { wants: [...sums, "inputs", "weightGradient"], inputRows: 8 });
      return pool.peakBytes - before;
    };
    await peak(2);
    expect(await peak(30)).toBeLessThanOrEqual(await peak(2));
  });
});

describe("statistics of gradients", () => {
  it.each([llama, gpt2])("are those of ordinary training: $name", async (scaffold) => {
    const model = await modelOf(scaffold);
    const wants: Statistic[] = ["weightGradient", "weightTimesGradient", "outputGradientMean", "outputGradientGram", "outputGradientNorm"];
    const head = model.architecture.head;
    const { sites } = await collectStatistics(model, [joined], { wants, sites: ({ kind }) => kind === "linear" });
    // a head of its own, so that the table's gradient is not in it
    const untied = withLeaves(model, new Map());
    const trained = unfreeze(untied);
    const gradients = backward(languageModelLoss(trained, joined));
    for (const [path, found] of sites) {
      const layer = trained.layers.get(path)!;
      const gradient = gradients.get(layer.weight)!;
      const weight = await numbers(layer.weight);
      const stored = await numbers(gradient);
      const { out, in: inner } = layer.site!;
      const oriented = (values: number[]): number[] =>
        layer.spec.transposed ? Array.from({ length: out * inner }, (_, i) => values[(i % inner) * out + Math.floor(i / inner)]!) : values;
      if (path !== head || !model.dimensions.tied) {
        close(await numbers(found.weightGradient!), oriented(stored));
        close(await numbers(found.weightTimesGradient!), oriented(stored.map((g, i) => Math.abs(g * weight[i]!))));
      }
      const n = out;
      const gram = await numbers(found.outputGradientGram!);
      close(
        (await numbers(found.outputGradientNorm!)).map((x) => x * x),
        Array.from({ length: n }, (_, i) => gram[i * n + i]!),
      );
      // a bias gets the sum of its output's gradients; 20 labels are scored
      if (layer.bias)
        close(
          (await numbers(found.outputGradientMean!)).map((x) => (x * found.rows) / 20),
          await numbers(gradients.get(layer.bias)!),
        );
    }
  });

  it("count labels of −100 and masked tokens as not scored, and leave the model as it was", async () => {
    const model = await modelOf(llama);
    const labels = joined.ids.map((row) => Array.from(row, (id, t) => (t < 2 ? -100 : id)));
    const wants: Statistic[] = ["weightGradient"];
    const { sites } = await collectStatistics(model, [{ ids: joined.ids, labels }], { wants, sites: [q(0)] });
    const trained = unfreeze(model);
    const gradient = backward(languageModelLoss(trained, { ids: joined.ids, labels })).get(trained.layers.get(q(0))!.weight)!;
    close(await numbers(sites.get(q(0))!.weightGradient!), await numbers(gradient));
    expect([...parameters(model).values()].some(({ trainable }) => trainable)).toBe(false);
  });

  it("have the Gram matrix of the gradients that an observer sees", async () => {
    const model = await modelOf(llama);
    const seen: number[][] = [];
    const site = "model.layers.0.mlp.down_proj";
    const observer: Observer = {
      sees: ({ path }) => path === site,
      outputGradient: (_site, g) => void seen.push(Array.from(viewOf(g))),
      leaf: new Parameter(zeros([1]), "leaf"),
    };
    // the mean over 20 labels; the statistic is of the sum
    backward(scale(languageModelLoss(model, joined, { observer }), 20));
    const rows = Array.from({ length: seen[0]!.length / 8 }, (_, i) => seen[0]!.slice(8 * i, 8 * i + 8));
    const { sites } = await collectStatistics(model, [joined], { wants: ["outputGradientGram"], sites: [site] });
    close(await numbers(sites.get(site)!.outputGradientGram!), plain(rows)["inputGram"]!);
  });
});

describe("the compensated stream", () => {
  /** The model with one block's matrices halved, as if it had been compressed. */
  const halved = (model: Model, depth: number): Model => {
    const layers = [...model.layers.values()].filter(({ site }) => site?.depth === depth && site.kind === "linear" && site.role !== "lm_head");
    return withLeaves(model, new Map(layers.map(({ weight }) => [weight, noGrad(() => new Parameter(scale(stopGradient(weight), 0.5), weight.name, false))])));
  };

  it.each([llama, gpt2])("takes each block's statistics behind the blocks that were replaced: $name", async (scaffold) => {
    const model = await modelOf(scaffold);
    const depth = model.dimensions.depth;
    const options: StatisticsOptions = { wants: [...sums, "inputs", "idCounts"], sites: () => true };
    const order: number[][] = [];
    const found = await collectStatistics(model, batches, {
      ...options,
      stream: "compensated",
      replace(block, current) {
        const depths = [...block.sites.keys()].map((path) => model.layers.get(path)!.site!.depth);
        order.push([...new Set(depths)]);
        return halved(current, depths[0]!);
      },
    });
    expect(order).toEqual(Array.from({ length: depth + 1 }, (_, i) => [i]));
    let replaced = model;
    for (let i = 0; i <= depth; i++) {
      const plainly = await collectStatistics(replaced, batches, options);
      for (const { path } of model.sites.filter((site) => site.depth === i)) await same(found.sites.get(path)!, plainly.sites.get(path)!);
      if (i < depth) replaced = halved(replaced, i);
    }
    const untouched = await collectStatistics(model, batches, options);
    await expect(same(found.sites.get(model.architecture.head)!, untouched.sites.get(model.architecture.head)!)).rejects.toThrow();
  });

  it("skips blocks without chosen sites, and gives its memory back", async () => {
    const model = await modelOf(llama);
    const options: StatisticsOptions = { wants: ["inputMean"], sites: [q(1), "lm_head"] };
    const run = () => collectStatistics(model, batches, { ...options, stream: "compensated", replace: (_block, current) => current });
    const found = await run();
    await allSame(found, await collectStatistics(model, batches, options));
    const { pool } = engine();
    const before = pool.usedBytes;
    const again = await run();
    const kept = [...again.sites.values()].reduce((sum, { inputMean }) => sum + 8 * inputMean!.size, 0);
    expect(pool.usedBytes - before).toBe(kept);
  });
});

describe("a calibration pass", () => {
  it("is saved and loaded with what is shared still shared", async () => {
    const statistics = await collectStatistics(await modelOf(gpt2), batches, { wants: [...sums, "inputs", "idCounts", "weightGradient"] });
    const shared = await collectStatistics(await modelOf(llama), batches, { wants: sums });
    await inFolder(async (folder) => {
      for (const given of [statistics, shared]) {
        const file = join(folder, "statistics.safetensors");
        await saveStatistics(given, file);
        const loaded = await loadStatistics(file);
        await allSame(loaded, given, 1e-300);
        const [own, back] = [given, loaded].map(({ sites }) => new Set([...sites.values()].map(({ inputGram }) => inputGram)).size);
        expect(back).toBe(own);
      }
      await expect(loadStatistics(new URL("../../data/lm/stories260K/model.safetensors", import.meta.url).pathname)).rejects.toThrow(
        "holds no statistics: its format is",
      );
    });
  });

  it("tells its progress, and stops between batches when the signal fires", async () => {
    const model = await modelOf(llama);
    const stop = new AbortController();
    const told: unknown[] = [];
    const run = collectStatistics(model, batches, {
      wants: ["inputMean"],
      signal: stop.signal,
      onProgress(progress) {
        told.push(progress);
        if (progress.batches === 2) stop.abort(new Error("enough"));
      },
    });
    await expect(run).rejects.toThrow("enough");
    expect(told).toEqual([
      { batches: 1, tokens: 10 },
      { batches: 2, tokens: 15 },
    ]);
  });

  it("ends in a sentence where something is wrong", async () => {
    const model = await modelOf(llama);
    const refused = (options: Partial<StatisticsOptions>, message: string, list = batches) =>
      expect(collectStatistics(model, list, { wants: sums, ...options })).rejects.toThrow(message);
    await refused({ sites: ["model.layers.0.self_attn.q_projj"] }, "the model has no site model.layers.0.self_attn.q_projj");
    await refused({ sites: ["model.embed_tokens"] }, "model.embed_tokens is of kind embedding, which has none of inputGram");
    await refused({ sites: () => false }, "no site was chosen");
    await refused({ wants: [] }, "no statistic is wanted");
    await refused({ wants: ["inputGramm" as Statistic] }, "inputGramm is not a statistic");
    await refused({ inputRows: 0 }, "inputRows is 0");
    await refused({ products: "f16" as "f32" }, "products is f16; it must be one of f64, f32");
    await refused({ stream: "compensated" }, "the compensated stream was given nothing that compresses a block");
    await refused({ stream: "compensated", replace: (_b, m) => m, wants: ["weightGradient"] }, "weightGradient needs the whole network at once");
    await refused({ stream: "teacher" }, "the teacher stream has no teacher");
    await refused({ stream: "teacher", teacher: await modelOf(gpt2) }, "the teacher's model.layers.0.self_attn.q_proj is missing");
    await refused({}, "there was nothing to collect statistics from", []);
    await refused({}, "there was nothing to collect statistics from", [{ ids: [[1, 2]], mask: [[0, 0]] }]);
    await refused({ wants: ["weightGradient"] }, "at least one scored label", [{ ids: [[1]] }]);
    await refused({}, "calibration batch 1 is empty", [{ ids: [[1, 2]] }, { ids: [] }]);
    await refused({}, "calibration batch 0: mask must be 1 rows of 2", [{ ids: [[1, 2]], mask: [[1]] }]);
    await refused({}, "calibration batch 0: ids must be 2 rows of 2", [{ ids: [[1, 2], [1]] }]);
    const broken = withLeaves(model, new Map([[model.layers.get(q(0))!.weight, new Parameter(tensor(new Array(64).fill(NaN), [8, 8], "f64"), "q", false)]]));
    await expect(collectStatistics(broken, batches, { wants: ["inputGram"] })).rejects.toThrow("the input of model.layers.0.self_attn.o_proj is not finite");
  });
});
