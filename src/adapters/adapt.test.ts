import { readdir } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { baseOf, inFolder, outputOf, scaffolds, type Scaffold } from "../../test/laws/scaffolds.ts";
import { StrutError } from "../errors.ts";
import { parameters, randomModel, type Model } from "../models/index.ts";
import { lowRank } from "../operators/index.ts";
import { backward, embedding, noGrad, Parameter, Rng, start, sum, tensor, toBytes, zeros, type Tensor } from "../tensor/index.ts";
import {
  activate,
  adapt,
  adapter,
  adapterParameters,
  type Adapter,
  attachedTo,
  coverage,
  dora,
  loadAdapter,
  lora,
  merge,
  removeAdapter,
  rslora,
  saveAdapter,
  type AdaptOptions,
} from "./index.ts";

const scaffold = (name: string): Scaffold => scaffolds.find((one) => one.name.startsWith(name))!;
const [two, tied, gpt] = [scaffold("llama f64"), scaffold("llama, tied"), scaffold("gpt2 f64")];
let llama: Model;
let tiedLlama: Model;
let gpt2: Model;

beforeAll(async () => {
  await start();
  llama = (await baseOf(two)).model;
  tiedLlama = (await baseOf(tied)).model;
  gpt2 = (await baseOf(gpt)).model;
});

const setOf = (model: Model, name = "default") => attachedTo(model, name)!;
const shapes = (model: Model, path: string): Record<string, string> =>
  Object.fromEntries(Object.entries(setOf(model).entries.get(path)!).map(([key, { shape }]) => [key, shape.join("×")]));
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

/** The sentence and the advice that a call ends in. */
async function sentence(body: () => unknown): Promise<string> {
  try {
    await body();
  } catch (error) {
    expect(error).toBeInstanceOf(StrutError);
    return `${(error as StrutError).message} ${(error as StrutError).hint ?? ""}`;
  }
  throw new Error("nothing was thrown");
}

describe("where an adapter goes", () => {
  it("is PEFT's default for the model type when no target is named", async () => {
    expect(setOf(await adapt(llama, lora, { r: 2 })).coverage.matched).toEqual(
      [0, 1].flatMap((i) => ["q_proj", "v_proj"].map((name) => `model.layers.${i}.self_attn.${name}`)),
    );
    expect(setOf(await adapt(gpt2, lora, { r: 2 })).coverage.matched).toEqual(["transformer.h.0.attn.c_attn"]);
  });

  it("is every linear layer but the head for all-linear, some layers for layersToTransform, and none that is excluded", () => {
    const last = (t: AdaptOptions): string[] => coverage(llama, lora, t).matched.map((path) => path.replace(/^model\.layers\.(\d)\.\w+\./, "$1 "));
    expect(last({ targets: "all-linear" })).toHaveLength(14);
    expect(last({ targets: "all-linear" })).not.toContain("lm_head");
    expect(last({ targets: ["k_proj", "down_proj"], layersToTransform: 1 })).toEqual(["1 k_proj", "1 down_proj"]);
    expect(last({ targets: ["k_proj", "o_proj"], excludeModules: ["layers.0.self_attn.k_proj"] })).toEqual(["0 o_proj", "1 k_proj", "1 o_proj"]);
    expect(last({ targets: ".*\\.1\\..*(up|gate)_proj" })).toEqual(["1 gate_proj", "1 up_proj"]);
  });

  it("says which entries match nothing, and what is saved whole, before anything is made", () => {
    expect(coverage(llama, lora, { targets: ["q_proj", "qproj", "c_attn"], modulesToSave: ["lm_head"] })).toEqual({
      matched: ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"],
      unmatched: ["qproj", "c_attn"],
      saved: ["lm_head"],
    });
  });

  it("ends in a sentence with near names where nothing matches", async () => {
    for (const body of [() => coverage(llama, lora, { targets: ["q_projj"] }), () => adapt(llama, lora, {}, { targets: ["q_projj"] })]) {
      const said = await sentence(body);
      expect(said).toContain('targets ["q_projj"] match no layer of LlamaForCausalLM');
      expect(said).toContain('Did you mean "q_proj" (2 layers)?');
    }
  });

  it("ends in a sentence on kinds of layers the method does not know", async () => {
    expect(await sentence(() => adapt(llama, dora, {}, { targets: ["embed_tokens"] }))).toMatch(/embed_tokens, which is of kind embedding.*linear/);
    expect(await sentence(() => adapt(llama, lora, {}, { targets: ["mlp"] }))).toMatch(/no layer with a weight of its own.*name the layers inside/);
  });
});

describe("what an adapter is made of", () => {
  it("takes rank and alpha by pattern, the first key that matches winning, and scales by each site's own rank", async () => {
    const model = await adapt(
      llama,
      lora,
      { r: 2, alpha: 2 },
      {
        targets: ["q_proj", "k_proj", "up_proj"],
        rankPattern: { "layers.0.self_attn.q_proj": 1, q_proj: 3, ".*up_proj": 4 },
        alphaPattern: { "self_attn.*": 9 },
      },
    );
    const at = (path: string): string => shapes(model, `model.layers.${path}`)["A"]!;
    expect([at("0.self_attn.q_proj"), at("1.self_attn.q_proj"), at("1.self_attn.k_proj"), at("0.mlp.up_proj")]).toEqual(["1×8", "3×8", "2×8", "4×8"]);
    const scaleAt = (path: string): number =>
      (model.layers.get(`model.layers.${path}`)!.attached[0]!.update!(model.layers.get(`model.layers.${path}`)!.site!) as unknown as { scale: number }).scale;
    expect(scaleAt("0.mlp.up_proj")).toBe(2 / 4);
    expect(scaleAt("1.self_attn.q_proj"), "alpha_pattern keys are endings: self_attn.* takes q_proj").toBe(9 / 3);
  });

  it("shares every leaf of the base and writes none", async () => {
    const model = await adapt(llama, dora, { r: 2 }, { targets: "all-linear", bias: "all", modulesToSave: ["norm"] });
    for (const [path, { weight, bias }] of llama.layers) expect([model.layers.get(path)!.weight, model.layers.get(path)!.bias], path).toEqual([weight, bias]);
    expect(model).not.toBe(llama);
    expect([llama.adapters.size, llama.active.length]).toEqual([0, 0]);
    expect([...llama.layers.values()].every(({ attached }) => attached.length === 0)).toBe(true);
  });

  it.each([
    ["none", 0, []],
    ["lora_only", 2, ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.q_proj.bias"]],
    ["all", 14, ["model.layers.0.mlp.down_proj.bias", "model.layers.1.self_attn.k_proj.bias"]],
  ] as const)("trains copies of base biases: %s", async (bias, count, some) => {
    const { copies } = setOf(await adapt(llama, lora, { r: 2 }, { targets: ["q_proj"], bias }));
    expect(copies.size).toBe(count);
    for (const name of some) {
      const [copy, base] = [copies.get(name)!, parameters(llama).get(name)!];
      expect(copy.trainable).toBe(true);
      expect(copy).not.toBe(base);
      expect(await numbers(copy)).toEqual(await numbers(base));
    }
  });

  it("trains whole modules beside it, and runs with theirs", async () => {
    const model = await adapt(llama, lora, { r: 2 }, { targets: ["q_proj"], modulesToSave: ["lm_head", "model.norm"] });
    const { copies, coverage: covered } = setOf(model);
    expect(covered.saved).toEqual(["model.norm", "lm_head"]);
    expect([...copies.keys()]).toEqual(["model.norm.weight", "lm_head.weight"]);
    copies.get("lm_head.weight")!.assign(zeros(copies.get("lm_head.weight")!.shape, "f64"));
    expect((await numbers(noGrad(() => outputOf(model, two)))).every((value) => value === 0)).toBe(true);
    expect((await numbers(noGrad(() => outputOf(activate(model, []), two)))).some((value) => value !== 0)).toBe(true);
  });

  it("counts trainable numbers once, under names that checkpoints use", async () => {
    const named = adapterParameters(setOf(await adapt(llama, lora, { r: 2 }, { targets: ["q_proj"], layersToTransform: [0], bias: "lora_only" })));
    expect([...named].map(([name, { size }]) => `${name} ${size}`)).toEqual([
      "default/model.layers.0.self_attn.q_proj/A 16",
      "default/model.layers.0.self_attn.q_proj/B 16",
      "default/model.layers.0.self_attn.q_proj.bias 8",
    ]);
  });

  it("gives a tied head and embedding one adapter with ensureWeightTying, two without", async () => {
    const targets = ["embed_tokens", "lm_head"];
    const one = setOf(await adapt(tiedLlama, lora, { r: 2 }, { targets, ensureWeightTying: true }));
    expect(one.entries.get("lm_head")).toBe(one.entries.get("model.embed_tokens"));
    expect(adapterParameters(one).size).toBe(2);
    const apart = setOf(await adapt(tiedLlama, lora, { r: 2 }, { targets }));
    expect(adapterParameters(apart).size).toBe(4);
    const tie = merge(await adapt(tiedLlama, lora, { r: 2 }, { targets, ensureWeightTying: true }));
    expect(tie.layers.get("lm_head")!.weight).toBe(tie.layers.get("model.embed_tokens")!.weight);
    const untied = merge(await adapt(tiedLlama, lora, { r: 2 }, { targets }));
    expect([untied.layers.get("lm_head")!.spec.tiedTo, untied.config["tie_word_embeddings"]]).toEqual([undefined, false]);
  });

  it("repeats layers that share their weights and adapts each by itself", async () => {
    const model = await adapt(
      llama,
      lora,
      { r: 2 },
      {
        targets: ["q_proj"],
        layerReplication: [
          [0, 2],
          [1, 2],
        ],
      },
    );
    expect([model.dimensions.depth, model.config["num_hidden_layers"], llama.dimensions.depth]).toEqual([3, 3, 2]);
    expect(model.layers.get("model.layers.2.mlp.up_proj")!.weight).toBe(llama.layers.get("model.layers.1.mlp.up_proj")!.weight);
    const [first, second] = ["model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.q_proj"].map((path) => setOf(model).entries.get(path)!);
    expect(first!["A"]).not.toBe(second!["A"]);
    expect(await numbers(first!["A"]!)).not.toEqual(await numbers(second!["A"]!));
    expect(await sentence(() => adapt(llama, lora, {}, { layerReplication: [[0, 3]] }))).toMatch(/\[0, 3\] does not lie in the model's 2 layers/);
  });

  it("trains single token rows, and refuses ids the vocabulary lacks", async () => {
    const model = await adapt(llama, lora, { r: 2 }, { targets: ["q_proj"], trainableTokenIndices: [1, 9] });
    expect(setOf(model).copies.get("model.embed_tokens.token_rows")!.shape).toEqual([2, 8]);
    expect(await sentence(() => adapt(llama, lora, { r: 2 }, { targets: ["q_proj"], trainableTokenIndices: [11] }))).toMatch(
      /holds 11; model\.embed_tokens has rows 0…10/,
    );
  });
});

describe("several adapters", () => {
  it("are told apart by name: a second one under the same name ends in a sentence", async () => {
    const model = await adapt(llama, lora, { r: 2 });
    expect(await sentence(() => adapt(model, dora, { r: 2 }))).toMatch(/already has an adapter named default.*another name/);
    expect(await sentence(() => activate(model, ["style"]))).toMatch(/no adapter named style It has default/);
    expect(await sentence(() => removeAdapter(llama, "default"))).toMatch(/no adapter named default It has none/);
  });

  it("leave the newest active; the others wait", async () => {
    const model = await adapt(await adapt(llama, lora, { r: 2 }), rslora, { r: 2 }, { name: "second" });
    expect([model.active, [...model.adapters.keys()]]).toEqual([["second"], ["default", "second"]]);
    const left = removeAdapter(model, "second");
    expect([left.active, [...left.adapters.keys()]]).toEqual([[], ["default"]]);
  });
});

describe("options", () => {
  it("are PEFT's too: its spelling and ours give the same adapter", async () => {
    const [ours, peft] = [
      await adapt(llama, lora, { r: 2, alpha: 5, dropout: 0.1, useRslora: true }),
      await adapt(llama, lora, { r: 2, lora_alpha: 5, lora_dropout: 0.1, use_rslora: true }),
    ];
    expect(setOf(peft).options).toEqual(setOf(ours).options);
    expect(setOf(ours).options).toEqual({ r: 2, alpha: 5, dropout: 0.1, useRslora: true, loraBias: false, initLoraWeights: true });
  });

  it.each([
    [{ rank: 4 }, /lora has no option rank/],
    [{ alhpa: 4 }, /no option alhpa Did you mean alpha\?/],
    [{ loraAlpha: 4 }, /no option loraAlpha/],
    [{ use_rsLora: true }, /no option use_rsLora Did you mean useRslora\?/],
    [{ r: 2, alpha: 1, lora_alpha: 2 }, /alpha is given twice/],
    [{ r: 0 }, /r is 0/],
    [{ r: "8" }, /r is "8".*rank of the update/],
    [{ dropout: 1 }, /dropout is 1/],
    [{ initLoraWeights: "corda" }, /initLoraWeights is "corda"/],
    [{ r: 5 }, /rank 5 is above what model\.layers\.0\.self_attn\.v_proj can have: its matrix is 4×8 Use a rank of at most 4/],
  ])("that are wrong end in a sentence: %o", async (options, expected) => {
    expect(await sentence(() => adapt(llama, lora, options))).toMatch(expected);
  });

  it("may be above the matrix in no pattern either", async () => {
    expect(await sentence(() => adapt(llama, lora, { r: 2 }, { targets: ["v_proj"], rankPattern: { "layers.1.self_attn.v_proj": 6 } }))).toMatch(
      /rank 6 is above what model\.layers\.1/,
    );
  });
});

/** B·A with rows of A picked from a pool that all sites share by a frozen index, and a frozen bank beside it. */
const pooled = adapter({
  id: "pooled",
  title: "Pooled",
  paper: "none",
  kinds: ["linear"],
  options: z.object({ r: z.int().positive().default(2).describe("rank") }),
  shared: (sites, o, { rng, dtype }) => ({
    pool: rng.normal([o.r * sites.length, sites[0]!.in], 1, dtype),
    bank: rng.normal([3, 3], 1, dtype),
  }),
  init: (site, o, { rng, dtype }, shared: { pool: Tensor; bank: Tensor }) => ({
    index: tensor(rng.permutation(shared.pool.shape[0]!).slice(0, o.r), [o.r], "i32"),
    B: zeros([site.out, o.r], dtype),
  }),
  update: (p, _site, _o, _live, shared) => lowRank(p.B, embedding(shared.pool, p.index)),
  layout: { tensors: { linear: { index: "pooled_index", B: "pooled_B" } }, shared: { pool: "pooled_pool" }, frozen: ["bank"], derived: true },
});

describe("parameters that sites share", () => {
  it("are one parameter with one gradient, the sum over its uses", async () => {
    const model = await adapt(llama, pooled, {}, { targets: ["q_proj"] });
    const set = setOf(model);
    expect([...adapterParameters(set).keys()].filter((name) => name.includes("pool"))).toEqual(["default/shared/pool"]);
    for (const { B } of set.entries.values() as Iterable<{ B: Parameter }>)
      B.assign(
        new Parameter(
          tensor(
            Array.from({ length: B.size }, (_, i) => i / 7),
            B.shape,
            "f64",
          ),
        ),
      );
    const pool = set.shared["pool"] as Parameter;
    const gradient = await numbers(backward(sum(outputOf(model, two))).get(pool)!);
    const used = new Set<number>();
    for (const { index } of set.entries.values()) for (const row of await numbers(index!)) used.add(row);
    gradient.forEach((value, at) => expect(value !== 0, `row ${Math.floor(at / 8)}`).toBe(used.has(Math.floor(at / 8))));
  });

  it("keep what a method froze: a bank and an index do not train, and live as long as the adapter", async () => {
    const model = await adapt(llama, pooled, {}, { targets: ["q_proj"] });
    const set = setOf(model);
    expect([...adapterParameters(set).values()].filter(({ trainable }) => trainable).map(({ name }) => name)).toEqual([
      "default/shared/pool",
      ...[0, 1].map((i) => `default/model.layers.${i}.self_attn.q_proj/B`),
    ]);
    expect((set.shared["bank"] as Parameter).name).toBe("default/shared/bank");
    const { index } = set.entries.get("model.layers.0.self_attn.q_proj")!;
    expect(index).not.toBeInstanceOf(Parameter);
    const before = toBytes(index!);
    for (let i = 0; i < 20; i++) zeros([2], "i32");
    expect(toBytes(index!)).toEqual(before);
  });

  it("stand in a folder of ours once; what is not stored is made again from the seed", async () => {
    const model = await adapt(llama, pooled, {}, { targets: ["q_proj"], seed: 7 });
    const set = setOf(model);
    for (const p of [set.shared["pool"]!, set.entries.get("model.layers.0.self_attn.q_proj")!["B"]!] as Parameter[])
      p.assign(noGrad(() => new Rng(5).normal(p.shape, 1, "f64")));
    await inFolder(async (folder) => {
      await saveAdapter(model, `${folder}/a`);
      expect((await readdir(`${folder}/a`)).sort()).toEqual(["adapter_model.safetensors", "strut.json"]);
      const again = await loadAdapter(llama, `${folder}/a`, { methods: [pooled as unknown as Adapter] });
      const back = setOf(again);
      for (const name of ["pool", "bank"]) expect(toBytes(back.shared[name]!)).toEqual(toBytes(set.shared[name]!));
      expect((back.shared["bank"] as Parameter).trainable).toBe(false);
      expect(await numbers(outputOf(again, two))).toEqual(await numbers(outputOf(model, two)));
      expect(await sentence(() => loadAdapter(llama, `${folder}/a`, { methods: [lora as unknown as Adapter] }))).toMatch(
        /the method "pooled", which strut does not know/,
      );
      const wide = randomModel({ ...llama.config, hidden_size: 16 }, (_, shape) => zeros(shape, "f64"));
      expect(await sentence(() => loadAdapter(wide, `${folder}/a`, { methods: [pooled as unknown as Adapter] }))).toMatch(/do not fit its 16×16 matrix/);
    });
  });
});

describe("loading", () => {
  it("makes parameters of the model's dtype that train, or do not", async () => {
    await inFolder(async (folder) => {
      await saveAdapter(await adapt(llama, lora, { r: 2 }), `${folder}/a`);
      const [on, off] = [
        await loadAdapter(llama, `${folder}/a`, { methods: [lora] }),
        await loadAdapter(llama, `${folder}/a`, { methods: [lora], trainable: false, name: "frozen" }),
      ];
      expect([...adapterParameters(setOf(on)).values()].every(({ dtype, trainable }) => dtype === "f64" && trainable)).toBe(true);
      expect([...adapterParameters(setOf(off, "frozen")).values()].some(({ trainable }) => trainable)).toBe(false);
    });
  });

  it("brings the method's regime along, so that training goes on as it was", async () => {
    const scheduled = { ...lora, regime: (o: { r: number }) => ({ state: { rank: o.r } }) };
    await inFolder(async (folder) => {
      await saveAdapter(await adapt(llama, lora, { r: 3 }), `${folder}/a`);
      expect(setOf(await loadAdapter(llama, `${folder}/a`, { methods: [scheduled] })).regime).toEqual({ state: { rank: 3 } });
    });
  });

  it("names the types it can read when it meets another", async () => {
    await inFolder(async (folder) => {
      await saveAdapter(await adapt(llama, dora, { r: 2 }), `${folder}/a`);
      expect(await sentence(() => loadAdapter(llama, `${folder}/a`, { methods: [lora] }))).toMatch(/type LORA/);
      expect(attachedTo(await loadAdapter(llama, `${folder}/a`, { methods: [lora, dora] }), "default")!.method).toBe("dora");
    });
  });
});
