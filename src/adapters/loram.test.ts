import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { stir } from "../../test/laws/subject.ts";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { forward, fullCache, loadModel, parameters, quantizeModel, randomModel, saveModel, unfreeze, type Model } from "../models/index.ts";
import { layerAt, makeLayer, makeModel } from "../models/model.ts";
import { chooseKept, keptLines, prune, pruneModel, type Kept, type PruneOptions } from "../models/pruning.ts";
import { noGrad, Parameter, Rng, start, tensor, type Tensor } from "../tensor/index.ts";
import { languageModelling, train } from "../training/index.ts";
import {
  adapt,
  adapterParameters,
  attachedTo,
  dora,
  loadAdapter,
  loadKept,
  lora,
  loram,
  merge,
  pissa,
  recover,
  saveAdapter,
  saveKept,
  type Adapter,
} from "./index.ts";

/** A GPT-2 of four blocks and five heads with biases that are not zero: fused c_attn, weights stored in×out. */
const gpt2 = (): Model => {
  const sizes = { vocab_size: 20, n_layer: 4, n_head: 5, n_embd: 20, n_inner: 30, n_positions: 16 };
  const model = randomModel({ model_type: "gpt2", tie_word_embeddings: true, ...sizes }, (name, shape) => new Rng(3).fork(name).normal(shape, 0.3));
  for (const { bias, spec } of model.layers.values()) bias?.assign(new Rng(4).fork(spec.path).normal(bias.shape, 0.2));
  return model;
};

const ids = Array.from({ length: 16 }, (_, i) => 1 + ((i * 7) % 19));
const calibration = [{ ids: [ids] }];
const bases: Record<"llama" | "gpt2", Model> = {} as never;
let folder: string;

beforeAll(async () => {
  await start();
  bases.llama = await loadModel("data/lm/stories260K");
  bases.gpt2 = gpt2();
  folder = await mkdtemp(join(tmpdir(), "strut-loram-"));
});
afterAll(() => rm(folder, { recursive: true }));

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor(ids, [1, 16], "i32"))));
const distance = (a: readonly number[], b: readonly number[]): number => Math.max(...a.map((x, i) => Math.abs(x - b[i]!)));
const matrixOf = (model: Model, path: string): Promise<number[]> => numbers(layerAt(model, path).site!.weight.toDense());
const updateOf = async (model: Model, path: string) => numbers(noGrad(() => layerAt(model, path).attached[0]!.update!(layerAt(model, path).site!).toDense()));
const count = (all: ReadonlyMap<string, Parameter>): number => [...all.values()].reduce((total, { size }) => total + size, 0);
const kinds = ["llama", "gpt2"] as const;

/** The full model with the cut rows (and their biases) or columns zeroed. */
async function zeroed(model: Model, kept: Kept): Promise<Model> {
  const layers = new Map(model.layers);
  for (const [path, { side, index }] of keptLines(model, kept)) {
    const { spec, weight, bias } = layerAt(model, path);
    const stays = new Set(index);
    const [values, cols] = [await numbers(weight), weight.shape[1]!];
    const lineOf = (at: number): number => ((side === "out") === (spec.transposed ?? false) ? at % cols : Math.floor(at / cols));
    const leaf = (of: readonly number[], shape: readonly number[]): Parameter => new Parameter(tensor(of, shape), "", false);
    const cut = leaf(
      values.map((value, at) => (stays.has(lineOf(at)) ? value : 0)),
      weight.shape,
    );
    const offset =
      bias && side === "out"
        ? leaf(
            (await numbers(bias)).map((value, at) => (stays.has(at) ? value : 0)),
            bias.shape,
          )
        : bias;
    layers.set(path, makeLayer(spec, cut, offset));
  }
  return makeModel({ ...model, layers });
}

describe("structured pruning", () => {
  it("cuts as many neurons and heads as its ratio says, whole query groups with their key/value head, in order", async () => {
    const kept = await chooseKept(bases.llama, { ratio: 0.6, calibration });
    const at = (name: string) => keptLines(bases.llama, kept).get(`model.layers.2.${name}`)!;
    expect(at("mlp.gate_proj").index.length).toBe(172 - Math.ceil(0.6 * 172));
    expect([at("self_attn.k_proj").index.length, at("self_attn.q_proj").index.length]).toEqual([2 * 8, 4 * 8]);
    // every d-th entry of k's rows is a head; q's rows are its G·d
    const heads = [...at("self_attn.k_proj").index].filter((_, i) => i % 8 === 0).map((place) => place / 8);
    expect([...at("self_attn.q_proj").index]).toEqual(heads.flatMap((head) => Array.from({ length: 16 }, (_, i) => head * 16 + i)));
    expect(at("self_attn.o_proj")).toEqual({ side: "in", index: at("self_attn.q_proj").index });
    expect([...kept.heads.keys()], "first and last stay whole").toEqual([1, 2, 3]);
    for (const { index } of keptLines(bases.llama, kept).values()) expect([...index]).toEqual([...index].toSorted((a, b) => a - b));
  });

  it("leaves 2 of 8 key/value heads at .85, and of a fused c_attn the same heads of q, k and v", async () => {
    const wide = randomModel(
      { model_type: "llama", vocab_size: 4, hidden_size: 32, intermediate_size: 20, num_hidden_layers: 3, num_attention_heads: 16, num_key_value_heads: 8 },
      (name, shape) => new Rng(1).fork(name).normal(shape, 1),
    );
    const { model } = await prune(wide, { ratio: 0.85, variant: "rand" });
    const shapes = ["k_proj", "q_proj", "o_proj"].map((name) => layerAt(model, `model.layers.1.self_attn.${name}`).weight.shape);
    expect([...shapes, layerAt(model, "model.layers.1.mlp.up_proj").weight.shape]).toEqual([
      [4, 32],
      [8, 32],
      [32, 8],
      [3, 32],
    ]);
    const kept = await chooseKept(bases.gpt2, { ratio: 0.5, calibration });
    const rows = [...keptLines(bases.gpt2, kept).get("transformer.h.1.attn.c_attn")!.index];
    expect(rows.length).toBe(3 * 3 * 4);
    expect(rows.slice(12, 24)).toEqual(rows.slice(0, 12).map((row) => row + 20));
    expect(rows.slice(24)).toEqual(rows.slice(0, 12).map((row) => row + 40));
  });

  it.each(kinds.flatMap((kind) => (["stru", "rand"] as const).map((variant) => [kind, variant] as const)))(
    "computes what the full model with zeros in the cut places does, with caches too (%s, %s)",
    async (kind, variant) => {
      const base = bases[kind];
      const kept = await chooseKept(base, { ratio: 0.5, variant, calibration });
      const small = pruneModel(base, kept);
      const expected = await logits(await zeroed(base, kept));
      expect(distance(await logits(small), expected)).toBeLessThan(1e-5);
      const caches = Array.from({ length: small.dimensions.depth }, () => fullCache(16));
      const parts = noGrad(() => [ids.slice(0, 9), ids.slice(9)].map((part) => forward(small, tensor(part, [1, part.length], "i32"), { caches })));
      expect(distance((await Promise.all(parts.map(numbers))).flat(), expected)).toBeLessThan(1e-5);
      expect(count(parameters(small))).toBeLessThan(0.85 * count(parameters(base)));
    },
  );

  it("scores a neuron or head by Σ|W ⊙ ∂L/∂W| over all of its lines: a unit that moves nothing goes first", async () => {
    const base = gpt2();
    // head 2 of block 1 and neurons 3 and 8 of block 2 lose every column that is read
    for (const [path, rows] of [
      ["transformer.h.1.attn.c_proj", [8, 9, 10, 11]],
      ["transformer.h.2.mlp.c_proj", [3, 8]],
    ] as const) {
      const { weight } = layerAt(base, path);
      weight.assign(
        tensor(
          (await numbers(weight)).map((value, at) => (rows.includes(Math.floor(at / 20) as never) ? 0 : value)),
          weight.shape,
        ),
      );
    }
    const kept = await chooseKept(base, { ratio: 0.2, calibration });
    expect([...kept.heads.get(1)!]).toEqual([0, 1, 3, 4]);
    expect([...kept.neurons.get(2)!]).not.toContain(3);
    expect([...kept.neurons.get(2)!]).not.toContain(8);
  });

  it("takes the loss of batches with inputs from a task, and asks for one", async () => {
    const batches = [{ ids: [ids], inputs: { x: tensor(ids, [1, 16], "i32") } }];
    const given = { ratio: 0.6, calibration: batches };
    expect(await chooseKept(bases.llama, { ...given, task: languageModelling })).toEqual(await chooseKept(bases.llama, { ...given, calibration }));
    await expect(chooseKept(bases.llama, given)).rejects.toThrow(/need a loss/);
  });

  it.each(kinds)("is loaded again from its folder, with the shapes that config.json gives each block (%s)", async (kind) => {
    const { model } = await prune(bases[kind], { ratio: 0.6, variant: "rand", untouched: [1, 2] });
    const at = join(folder, `pruned-${kind}`);
    await saveModel(model, at);
    const config = JSON.parse(await readFile(join(at, "config.json"), "utf8")) as Record<string, unknown>;
    expect(Object.keys(config)).toEqual(expect.arrayContaining(["pruned_mlp_interval", "pruned_mlp_ratio", "pruned_attn_interval", "pruned_attn_ratio"]));
    expect(config["pruned_attn_interval"]).toEqual([1, bases[kind].dimensions.depth - 2]);
    const loaded = await loadModel(at);
    expect(await logits(loaded)).toEqual(await logits(model));
    const again = await prune(loaded, { ratio: 0.5, variant: "rand", untouched: [1, 2] });
    expect(layerAt(again.model, [...keptLines(loaded, again.kept).keys()][0]!).weight.size).toBeGreaterThan(0);
  });
});

describe("recovery", () => {
  it.each(kinds)("puts the update of the pruned model where it belongs in the full one, and nothing elsewhere (%s)", async (kind) => {
    const base = bases[kind];
    const { model: pruned, kept } = await prune(base, { ratio: 0.5, calibration });
    const small = stir(await adapt(pruned, loram, { r: 2 }));
    const large = recover(small, base, kept);
    const lines = keptLines(base, kept);
    const site = (model: Model, path: string) => layerAt(model, path).site!;
    let [expected, trained] = [0, 0];
    for (const [path] of attachedTo(small, "default")!.entries) {
      const [from, to] = [await updateOf(small, path), await updateOf(large, path)];
      const [cols, wide] = [site(small, path).in, site(base, path).in];
      const at = lines.get(path);
      const whole = new Array<number>(to.length).fill(0);
      from.forEach((value, i) => {
        const [row, col] = [Math.floor(i / cols), i % cols];
        whole[(at?.side === "out" ? at.index[row]! : row) * wide + (at?.side === "in" ? at.index[col]! : col)] = value;
      });
      expect(to).toEqual(whole);
      // gathering the kept lines gives the factors that were trained
      const factors = (model: Model) => attachedTo(model, "default")!.entries.get(path) as { A: Tensor; B: Tensor };
      const [A, B] = [await numbers(factors(large).A), await numbers(factors(large).B)];
      if (at?.side === "in") expect(A.filter((_, i) => at.index.includes(i % wide))).toEqual(await numbers(factors(small).A));
      else expect(A).toEqual(await numbers(factors(small).A));
      if (at?.side === "out") expect(B.filter((_, i) => at.index.includes(Math.floor(i / 2)))).toEqual(await numbers(factors(small).B));
      else expect(B).toEqual(await numbers(factors(small).B));
      trained += 2 * (site(small, path).in + site(small, path).out);
      expected += 2 * (site(base, path).in + site(base, path).out);
    }
    expect([small, large].map((model) => count(adapterParameters(attachedTo(model, "default")!)))).toEqual([trained, expected]);
    const answer = await logits(large);
    expect(distance(await logits(merge(large)), answer)).toBeLessThan(3e-5 * Math.max(...answer.map(Math.abs)));
  });

  it("is a plain LoRA at ratio 0, to the byte of its file", async () => {
    const base = bases.llama;
    const { model, kept } = await prune(base, { ratio: 0, calibration });
    const files: Buffer[] = [];
    for (const [i, on] of [model, base].entries()) {
      const run = { batches: calibration, steps: 3, learningRate: 1e-2 };
      const trained = (await train(await adapt(on, lora, { r: 2 }, { targets: ["q_proj", "down_proj"] }), run)).model;
      await saveAdapter(i === 0 ? recover(trained, base, kept) : trained, join(folder, `ratio0-${i}`));
      for (const name of ["adapter_model.safetensors", "adapter_config.json"]) files.push(await readFile(join(folder, `ratio0-${i}`, name)));
    }
    expect(files[0]!.equals(files[2]!) && files[1]!.equals(files[3]!)).toBe(true);
  });

  it("leaves the base alone with a zero adapter, and fills with N(0, 1/8²) if asked", async () => {
    const base = bases.llama;
    const { model, kept } = await prune(base, { ratio: 0.5, variant: "rand" });
    const fresh = await adapt(model, lora, { r: 2 }, { targets: ["o_proj", "v_proj"] });
    for (const fill of ["zero", "normal"] as const) expect(distance(await logits(recover(fresh, base, kept, { fill })), await logits(base))).toBe(0);
    const path = "model.layers.1.self_attn.o_proj";
    const filled = attachedTo(recover(fresh, base, kept, { fill: "normal" }), "default")!.entries.get(path)!["A"]!;
    const rest = (await numbers(filled)).filter(
      (_, i) =>
        !keptLines(base, kept)
          .get(path)!
          .index.includes(i % 64),
    );
    expect(Math.sqrt(rest.reduce((sum, x) => sum + x * x, 0) / rest.length)).toBeCloseTo(1 / 8, 1);
  });

  it("of a LoRA on a tied head does not touch the embedding", async () => {
    const base = bases.gpt2;
    const { model, kept } = await prune(base, { ratio: 0.5, variant: "rand" });
    const merged = merge(recover(stir(await adapt(model, loram, { r: 2 })), base, kept));
    expect(await numbers(layerAt(merged, "transformer.wte").weight)).toEqual(await numbers(layerAt(base, "transformer.wte").weight));
    expect(await matrixOf(merged, "lm_head")).not.toEqual(await matrixOf(base, "lm_head"));
  });

  it.each(kinds)("gives an ordinary LoRA folder, read by lora and by loram, with the kept places beside it in int64 (%s)", async (kind) => {
    const base = bases[kind];
    const { model, kept } = await prune(base, { ratio: 0.5, calibration });
    const trained = (await train(await adapt(model, loram, { r: 2 }), { batches: calibration, steps: 3, learningRate: 1e-2 })).model;
    const at = join(folder, `a-${kind}`);
    const large = recover(trained, base, kept);
    await saveAdapter(large, at);
    await saveKept(kept, base, at);
    expect(await loadKept(at, base)).toEqual(kept);
    const header = (await readFile(join(at, "kept.safetensors"))).subarray(8).toString("latin1");
    const layer = kind === "llama" ? "model.layers.1" : "transformer.h.1";
    for (const name of [`"${layer}.mlp.kept":{"dtype":"I64"`, `"${layer}.attn.kept_kv":{"dtype":"I64"`]) expect(header).toContain(name);
    expect(JSON.parse(await readFile(join(at, "adapter_config.json"), "utf8"))).toMatchObject({ peft_type: "LORA", r: 2, lora_alpha: 16 });
    for (const method of [lora, loram]) {
      const files = method === lora ? ["adapter_config.json", "adapter_model.safetensors"] : ["adapter_config.json", "adapter_model.safetensors", "strut.json"];
      const copy = await mkdtemp(join(folder, "copy-"));
      for (const file of files) await writeFile(join(copy, file), await readFile(join(at, file)));
      expect(await logits(await loadAdapter(base, copy, { methods: [method as unknown as Adapter] }))).toEqual(await logits(large));
    }
  });
});

describe("semi-structured and unstructured pruning", () => {
  it.each(kinds.flatMap((kind) => (["sparsegpt", "taylor"] as const).map((criterion) => [kind, criterion] as const)))(
    "zeroes two of every four entries of a row, or a share of each matrix, and cuts nothing (%s, %s)",
    async (kind, criterion) => {
      const base = bases[kind];
      const shared = { criterion, calibration } as const;
      const [semi, unst] = [await prune(base, { variant: "semi", ...shared }), await prune(base, { variant: "unst", ratio: 0.3, ...shared })];
      expect([semi.kept, unst.kept]).toEqual(Array.from({ length: 2 }, () => ({ neurons: new Map(), heads: new Map() })));
      expect(count(parameters(unst.model))).toBe(count(parameters(base)));
      const path = kind === "llama" ? "model.layers.1.self_attn.q_proj" : "transformer.h.1.attn.c_attn";
      const [whole, half, some] = [await matrixOf(base, path), await matrixOf(semi.model, path), await matrixOf(unst.model, path)];
      for (let at = 0; at < half.length; at += 4) expect(half.slice(at, at + 4).filter((w) => w !== 0).length).toBe(2);
      expect(some.filter((w) => w === 0).length).toBe(Math.round(0.3 * whole.length));
      for (const left of [half, some]) expect(left.every((w, i) => w === 0 || w === whole[i])).toBe(criterion === "taylor");
      const head = kind === "llama" ? "model.layers.0.self_attn.q_proj" : "transformer.h.0.attn.c_attn";
      expect(await matrixOf(semi.model, head), "untouched").toEqual(await matrixOf(base, head));
    },
  );

  it("moves what stays so that the output changes less than by entries of least |W ⊙ ∂L/∂W| alone, and nothing where nothing goes", async () => {
    const base = bases.llama;
    const before = await logits(base);
    const change = async (options: PruneOptions): Promise<number> => {
      const after = await logits((await prune(base, { ...options, calibration })).model);
      return Math.hypot(...after.map((y, i) => y - before[i]!));
    };
    for (const variant of ["semi", "unst"] as const) expect(await change({ variant })).toBeLessThan(0.9 * (await change({ variant, criterion: "taylor" })));
    expect(await change({ variant: "unst", ratio: 0 })).toBe(0);
  });

  it.each(["semi", "unst"] as const)("masks the update in training, and recovery leaves the factors as they are (%s)", async (variant) => {
    const base = bases.llama;
    const { model, kept } = await prune(base, { variant, calibration });
    const begun = await adapt(model, loram, { r: 2 });
    expect(await logits(begun)).toEqual(await logits(model));
    const trained = (await train(begun, { batches: calibration, steps: 4, learningRate: 1e-2 })).model;
    const path = "model.layers.1.mlp.up_proj";
    const [w, merged, update] = [await matrixOf(model, path), await matrixOf(merge(trained), path), await updateOf(trained, path)];
    w.forEach((value, i) => value === 0 && expect([merged[i]! + 0, update[i]! + 0]).toEqual([0, 0]));
    expect(distance(await logits(merge(trained)), await logits(trained))).toBeLessThan(1e-4);
    const large = recover(trained, base, kept);
    const [before, after] = [trained, large].map((one) => attachedTo(one, "default")!.entries.get(path)!);
    expect([after!["A"], after!["B"]]).toEqual([before!["A"], before!["B"]]);
    expect((await updateOf(large, path)).some((value, i) => w[i] === 0 && value !== 0)).toBe(true);
    // on the disk there are the factors alone: the base says what is masked
    const at = join(folder, variant);
    await saveAdapter(trained, at);
    for (const [on, expected] of [
      [model, trained],
      [base, large],
    ] as const)
      expect(await logits(await loadAdapter(on, at, { methods: [loram as unknown as Adapter] }))).toEqual(await logits(expected));
  });
});

describe("QLoRAM", () => {
  it.each(kinds)("trains on a pruned base in 4 bits, which it never moves, and is recovered for the full one in f32 (%s)", async (kind) => {
    const base = bases[kind];
    const { model: pruned, kept } = await prune(base, { ratio: 0.5, calibration });
    const small = quantizeModel(pruned);
    const held = [...small.layers.values()].filter(({ quantized }) => quantized);
    expect(held.map(({ spec }) => spec.path)).toEqual(
      pruned.sites.filter(({ kind: of, path }) => of === "linear" && path !== "lm_head").map(({ path }) => path),
    );
    for (const { site, spec } of held) expect(site!.weight.cost().bytes).toBeLessThan(0.18 * layerAt(pruned, spec.path).site!.weight.cost().bytes);
    const near = await logits(small);
    expect(distance(near, await logits(pruned))).toBeGreaterThan(0);
    const adapted = await adapt(small, loram, { r: 2 });
    expect(await logits(adapted)).toEqual(near);
    for (const params of attachedTo(adapted, "default")!.entries.values()) expect(Object.keys(params)).toEqual(["A", "B"]);
    const before = await numbers(held[0]!.weight);
    const run = { batches: calibration, steps: 30, learningRate: 1e-2 };
    const losses: number[] = [];
    const { model: trained } = await train(adapted, { ...run, onEvent: (event) => event.event === "step" && losses.push(event.loss) });
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.1);
    expect(await numbers(held[0]!.weight)).toEqual(before);
    expect(distance(await logits(merge(trained)), await logits(trained))).toBeLessThan(1e-3);
    const large = recover(trained, base, kept);
    const at = join(folder, `q-${kind}`);
    await saveAdapter(large, at);
    expect(await logits(await loadAdapter(base, at, { methods: [loram as unknown as Adapter] }))).toEqual(await logits(large));
    const own = await mkdtemp(join(folder, "own-"));
    await saveAdapter(trained, join(own, "adapter"));
    expect(await logits(await loadAdapter(small, join(own, "adapter"), { methods: [loram as unknown as Adapter] }))).toEqual(await logits(trained));
  });

  it("saves no quantised folder, trains no quantised matrix", async () => {
    const small = quantizeModel(bases.gpt2);
    await expect(saveModel(small, join(folder, "nf4"))).rejects.toThrow(/is quantised, and strut writes no such folders/);
    expect(() => unfreeze(small)).toThrow(/c_attn.weight is quantised, so it cannot train itself/);
    await expect(adapt(small, lora, { r: 2 }, { targets: ["c_attn"], modulesToSave: ["c_fc"] })).rejects.toThrow(/is quantised/);
    expect(await logits(quantizeModel(small))).toEqual(await logits(small));
  });
});

describe("LoRAM", () => {
  it("says what it cannot do", async () => {
    const base = bases.llama;
    await expect(chooseKept(base, { ratio: 1 })).rejects.toThrow(/ratio is 1: /);
    await expect(chooseKept(base, { ratio: 0.999, variant: "rand" })).rejects.toThrow(/leaves none of 172 neurons/);
    await expect(chooseKept(base, { ratio: 0.5 })).rejects.toThrow(/needs calibration batches/);
    await expect(chooseKept(base, { variant: "semi", calibration })).rejects.toThrow(/keeps every row and column/);
    await expect(prune({ ...base, architecture: { ...base.architecture, modelType: "use-lite", coupled: undefined as never } }, {})).rejects.toThrow(
      /a use-lite model cannot be pruned this way/,
    );
    const { model, kept } = await prune(base, { variant: "rand" });
    const refused = async (adapted: Promise<Model>, why: RegExp): Promise<void> => {
      const small = await adapted;
      expect(() => recover(small, base, kept)).toThrow(why);
    };
    await refused(adapt(model, dora, { r: 2 }), /more or other than factors A and B/);
    await refused(adapt(model, pissa, { r: 2 }), /began by taking a part/);
    await refused(adapt(model, lora, { r: 2 }, { modulesToSave: ["up_proj"] }), /which was cut/);
  });

  it("refuses pickles, other models' places and parts of heads", async () => {
    const base = bases.llama;
    await expect(loadKept("model.layers.4.mlp.gate_proj.pt", base)).rejects.toThrow(/is a pickle, which strut never runs/);
    const kept = await chooseKept(base, { variant: "rand" });
    const at = await mkdtemp(join(folder, "kept-"));
    await saveKept(kept, base, at);
    await expect(loadKept(at, bases.gpt2)).rejects.toThrow(/names nothing that this model could keep/);
    await expect(loadKept(at, tinyModel())).rejects.toThrow(/kept/);
    expect(() => pruneModel(base, { ...kept, heads: new Map([[1, Int32Array.of(2, 1)]]) })).toThrow(/must rise/);
    expect(() =>
      pruneModel(base, {
        ...kept,
        heads: new Map([
          [1, Int32Array.of(0)],
          [3, Int32Array.of(0)],
        ]),
      }),
    ).toThrow(/config.json cannot say/);
  });
});
