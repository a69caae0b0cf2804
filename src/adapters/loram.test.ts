import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { stir } from "../../test/laws/subject.ts";
import { loadModel, parameters, type Model } from "../models/index.ts";
import { layerAt, makeLayer, makeModel } from "../models/model.ts";
import { forward } from "../models/index.ts";
import { noGrad, Parameter, start, tensor, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import {
  adapt,
  attachedTo,
  chooseKept,
  loadAdapter,
  loadKept,
  lora,
  merge,
  pruneModel,
  recover,
  saveAdapter,
  saveKept,
  type Adapter,
  type Kept,
} from "./index.ts";

const calibration = [{ ids: [Array.from({ length: 40 }, (_, i) => 1 + ((i * 37) % 500))] }];
let base: Model;

beforeAll(async () => {
  await start();
  base = await loadModel("data/lm/stories260K");
});

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor(calibration[0]!.ids[0]!, [1, 40], "i32"))));
const distance = (a: readonly number[], b: readonly number[]): number => Math.max(...a.map((x, i) => Math.abs(x - b[i]!)));

/** The full model with the cut rows or columns zeroed. */
async function zeroed(model: Model, kept: Kept): Promise<Model> {
  const layers = new Map(model.layers);
  for (const [path, { side, index }] of kept) {
    const { spec, weight } = layerAt(model, path);
    const [values, [, cols]] = [await numbers(weight), weight.shape as [number, number]];
    const stays = new Set(index);
    const cut = values.map((value, at) => (stays.has(side === "out" ? Math.floor(at / cols) : at % cols) ? value : 0));
    layers.set(path, makeLayer(spec, new Parameter(tensor(cut, weight.shape), spec.path, false)));
  }
  return makeModel({ ...model, layers });
}

describe("LoRAM", () => {
  it("cuts as many neurons and heads as its ratio says, whole query groups with their key/value head, in order", async () => {
    const kept = await chooseKept(base, { ratio: 0.5, calibration });
    const at = (name: string) => kept.get(`model.layers.2.${name}`)!;
    expect(at("mlp.gate_proj").index.length).toBe(172 - Math.ceil(0.5 * 172));
    expect([at("self_attn.k_proj").index.length, at("self_attn.q_proj").index.length]).toEqual([2 * 8, 4 * 8]);
    const kv = [...at("self_attn.k_proj").index].filter((place) => place % 8 === 0).map((place) => place / 8);
    expect([...at("self_attn.q_proj").index]).toEqual(kv.flatMap((head) => Array.from({ length: 16 }, (_, i) => head * 16 + i)));
    expect(at("self_attn.o_proj")).toEqual({ side: "in", index: at("self_attn.q_proj").index });
    expect(
      [...kept.keys()].some((path) => path.startsWith("model.layers.0.") || path.startsWith("model.layers.4.")),
      "first and last stay whole",
    ).toBe(false);
    for (const { index } of kept.values()) expect([...index]).toEqual([...index].toSorted((a, b) => a - b));
  });

  it.each(["taylor", "random"] as const)("computes what the full model with zeros in the cut places does (%s)", async (select) => {
    const kept = await chooseKept(base, { ratio: 0.5, select, calibration });
    const small = pruneModel(base, kept);
    expect(distance(await logits(small), await logits(await zeroed(base, kept)))).toBeLessThan(1e-4);
    const count = (model: Model): number => [...parameters(model).values()].reduce((total, { size }) => total + size, 0);
    expect(count(small)).toBeLessThan(0.8 * count(base));
  });

  it("keeps the important: the loss of the Taylor choice is nearer to the full model's than that of the opposite choice", async () => {
    const whole = await logits(base);
    const near = distance(await logits(pruneModel(base, await chooseKept(base, { ratio: 0.25, calibration }))), whole);
    const far = distance(await logits(pruneModel(base, await chooseKept(base, { ratio: 0.25, select: "random", seed: 3 }))), whole);
    expect(near).toBeLessThan(far);
  });

  it("puts the update of the pruned model where it belongs in the full one, and nothing elsewhere", async () => {
    const kept = await chooseKept(base, { ratio: 0.5, calibration });
    const small = stir(await adapt(pruneModel(base, kept), lora, { r: 2 }, { targets: "all-linear" }));
    const large = recover(small, base, kept);
    const updateOf = async (model: Model, path: string) =>
      numbers(noGrad(() => layerAt(model, path).attached[0]!.update!(layerAt(model, path).site!).toDense()));
    for (const path of ["model.layers.2.self_attn.k_proj", "model.layers.2.mlp.down_proj", "model.layers.0.mlp.up_proj"]) {
      const [from, to] = [await updateOf(small, path), await updateOf(large, path)];
      const [cols, wide] = [layerAt(small, path).site!.in, layerAt(base, path).site!.in];
      const at = kept.get(path);
      const place = (i: number): number => {
        const [row, col] = [Math.floor(i / cols), i % cols];
        return at?.side === "out" ? at.index[row]! * wide + col : at ? row * wide + at.index[col]! : i;
      };
      from.forEach((value, i) => expect(to[place(i)]).toBe(value));
      expect(Math.hypot(...to)).toBeCloseTo(Math.hypot(...from), 5);
    }
    expect((await logits(merge(large))).every(Number.isFinite)).toBe(true);
  });

  it("is a plain LoRA at ratio 0, leaves the base alone with a zero adapter, and fills with noise if asked", async () => {
    const nothing = await chooseKept(base, { ratio: 0, calibration });
    const small = stir(await adapt(pruneModel(base, nothing), lora, { r: 2 }, { targets: ["q_proj", "down_proj"] }));
    const plain = stir(await adapt(base, lora, { r: 2 }, { targets: ["q_proj", "down_proj"] }));
    expect(await logits(recover(small, base, nothing))).toEqual(await logits(plain));
    const kept = await chooseKept(base, { ratio: 0.5, select: "random" });
    const fresh = await adapt(pruneModel(base, kept), lora, { r: 2 }, { targets: ["o_proj"] });
    expect(distance(await logits(recover(fresh, base, kept)), await logits(base))).toBe(0);
    const filled = attachedTo(recover(fresh, base, kept, { fill: "normal" }), "default")!.entries.get("model.layers.1.self_attn.o_proj")!["A"]!;
    const rest = (await numbers(filled)).filter((_, i) => !kept.get("model.layers.1.self_attn.o_proj")!.index.includes(i % 64));
    expect(Math.sqrt(rest.reduce((sum, x) => sum + x * x, 0) / rest.length)).toBeCloseTo(1 / 8, 1);
  });

  it("trains on the small model, and its adapter opens as an ordinary LoRA of the large one", async () => {
    const kept = await chooseKept(base, { ratio: 0.5, calibration });
    const { model, loss } = await train(await adapt(pruneModel(base, kept), lora, { r: 2 }, { targets: "all-linear" }), {
      batches: calibration,
      steps: 4,
      learningRate: 1e-3,
    });
    expect(loss).toBeGreaterThan(0);
    const folder = await mkdtemp(join(tmpdir(), "strut-loram-"));
    try {
      const large = recover(model, base, kept);
      await saveAdapter(large, join(folder, "a"));
      await saveKept(kept, join(folder, "a"));
      expect(await loadKept(join(folder, "a"))).toEqual(kept);
      expect(await logits(await loadAdapter(base, join(folder, "a"), { methods: [lora as unknown as Adapter] }))).toEqual(await logits(large));
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("says what it cannot do", async () => {
    await expect(chooseKept(base, { ratio: 1 })).rejects.toThrow(/ratio is 1; it must lie in/);
    await expect(chooseKept(base, { ratio: 0.5 })).rejects.toThrow(/needs calibration batches/);
    await expect(chooseKept(await loadModel("data/lm/gpt-nano-sort"), { ratio: 0.5, select: "random" })).rejects.toThrow(
      /a gpt2 model cannot be pruned this way/,
    );
  });
});
