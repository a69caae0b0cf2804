import { readdir } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { baseOf, inFolder, scaffolds } from "../../test/laws/scaffolds.ts";
import { stir } from "../../test/laws/subject.ts";
import type { Model } from "../models/index.ts";
import { forward } from "../models/index.ts";
import type { Run } from "../nn/contracts.ts";
import { backward, noGrad, scope, start, sum, tensor, toBytes } from "../tensor/index.ts";
import { activate, adapt, adapterParameters, attachedTo, dora, loadAdapters, lora, merge, saveAdapters, toLora } from "./index.ts";

const scaffold = scaffolds.find(({ name }) => name === "llama f64")!;
const rows = [
  [3, 1, 4, 1, 5],
  [9, 2, 6, 5, 3],
  [5, 8, 9, 7, 9],
  [3, 2, 3, 8, 4],
];
let base: Model;

beforeAll(async () => {
  await start();
  base = (await baseOf(scaffold)).model;
});

const answer = async (model: Model, ids: readonly (readonly number[])[], run: Run = {}): Promise<number[]> => [
  ...((await noGrad(() => scope(() => forward(model, tensor(ids.flat(), [ids.length, ids[0]!.length], "i32"), run))).data()) as Float64Array),
];
const distance = (a: readonly number[], b: readonly number[]): number => Math.max(...a.map((x, i) => Math.abs(x - b[i]!)));

async function twoAdapters(): Promise<Model> {
  const one = stir(await adapt(base, lora, { r: 2 }, { name: "one", targets: "all-linear" }), "one", 3);
  const two = stir(await adapt(one, dora, { r: 1 }, { name: "two", targets: ["q_proj", "down_proj"] }), "two", 4);
  return stir(await adapt(two, lora, { r: 2 }, { name: "three", targets: ["embed_tokens", "lm_head"] }), "three", 5);
}

it("does not write an adapter beside others under a name that leads out of the folder", async () => {
  const model = await adapt(await twoAdapters(), lora, { r: 1 }, { name: "../elsewhere" });
  await inFolder(async (folder) => {
    await expect(saveAdapters(model, `${folder}/all`)).rejects.toThrow('the adapter "../elsewhere" cannot be saved beside others');
    expect(await readdir(folder)).toEqual([]);
  });
});

describe("a batch of several adapters", () => {
  it("gives each row what its own adapter gives alone, whatever is active", async () => {
    const model = await twoAdapters();
    const mix = ["one", null, "three", "two"];
    const together = await answer(model, rows, { mix });
    const size = together.length / 4;
    for (const [i, name] of mix.entries()) {
      const alone = await answer(activate(model, name === null ? [] : [name]), [rows[i]!]);
      expect(distance(together.slice(i * size, (i + 1) * size), alone), `row ${i}, ${name}`).toBeLessThan(1e-12);
    }
    expect(await answer(activate(model, ["two"]), rows, { mix })).toEqual(together);
    expect(await answer(model, rows, { mix: ["two", "two", "two", "two"] })).toEqual(await answer(activate(model, ["two"]), rows));
  });

  it("sends each adapter the gradient of its rows alone", async () => {
    const model = await twoAdapters();
    const gradients = (of: Model, ids: readonly (readonly number[])[], run: Run) => backward(sum(forward(of, tensor(ids.flat(), [ids.length, 5], "i32"), run)));
    const together = gradients(model, rows, { mix: ["one", "two", "one", null] });
    const alone = gradients(activate(model, ["one"]), [rows[0]!, rows[2]!], {});
    for (const [key, p] of adapterParameters(attachedTo(model, "one")!)) {
      const [a, b] = [[...(await together.get(p)!.data())], [...(await alone.get(p)!.data())]] as number[][];
      expect(distance(a!, b!), key).toBeLessThan(1e-11);
    }
  });

  it("refuses an unknown adapter, a wrong number of rows, and norms that trained, in a sentence", async () => {
    const model = await twoAdapters();
    await expect(answer(model, rows, { mix: ["one", null] })).rejects.toThrow(/for 2 rows, the batch has 4/);
    await expect(answer(model, rows, { mix: ["one", null, "four", null] })).rejects.toThrow(/the adapter four, which the model does not have/);
    const normed = await adapt(base, lora, {}, { targets: ["q_proj"], modulesToSave: ["model.norm"], name: "normed" });
    await expect(answer(normed, rows, { mix: ["normed", null, null, null] })).rejects.toThrow(/has trained the norm model.norm/);
  });
});

describe("several adapters on one base", () => {
  it("of different methods are saved and loaded together, and answer as before, alone and stacked", async () => {
    const model = await twoAdapters();
    await inFolder(async (folder) => {
      await saveAdapters(model, `${folder}/all`);
      expect((await readdir(`${folder}/all`)).sort()).toEqual(["one", "three", "two"]);
      const back = await loadAdapters(base, `${folder}/all`, { methods: [lora, dora] as never });
      expect(back.active).toEqual(["one", "three", "two"]);
      expect(await answer(back, rows)).toEqual(await answer(activate(model, ["one", "three", "two"]), rows));
      for (const name of back.active) expect(await answer(activate(back, [name]), rows), name).toEqual(await answer(activate(model, [name]), rows));
      const named = await adapt(model, lora, { r: 2 }, { targets: ["v_proj"] });
      await saveAdapters(named, `${folder}/default-too`);
      expect((await readdir(`${folder}/default-too`)).sort()).toEqual(["adapter_config.json", "adapter_model.safetensors", "one", "three", "two"]);
      await expect(loadAdapters(base, "data", { methods: [lora] as never })).rejects.toThrow(/holds no adapter/);
    });
  });
});

describe("conversion to a LoRA", () => {
  it("is exact from the update's own rank, and its error is what the spectrum beyond the rank holds", async () => {
    const tuned = stir(await adapt(base, lora, { r: 3, alpha: 5, loraBias: true }, { targets: ["q_proj", "o_proj", "embed_tokens"] }));
    const exact = await toLora(tuned, { rank: 3 });
    expect(exact.error.total).toBeLessThan(1e-12);
    expect(distance(await answer(exact.model, rows), await answer(tuned, rows))).toBeLessThan(1e-11);
    const rough = await toLora(tuned, { rank: 1, as: "rough" });
    const matrices = (model: Model): Map<string, number[]> =>
      new Map(
        [...merge(model).layers].map(([path, { weight }]) => [path, [...(toBytes(weight).length ? new Float64Array(toBytes(weight).slice().buffer) : [])]]),
      );
    const [whole, cut, plain] = [matrices(tuned), matrices(rough.model), matrices(activate(base, []))];
    let [lost, all] = [0, 0];
    for (const [path, error] of rough.error.sites) {
      const [w, c, b] = [whole.get(path)!, cut.get(path)!, plain.get(path)!];
      const gone = w.reduce((total, x, i) => total + (x - c[i]!) ** 2, 0);
      const size = w.reduce((total, x, i) => total + (x - b[i]!) ** 2, 0);
      expect(error).toBeCloseTo(Math.sqrt(gone / size), 9);
      lost += gone;
      all += size;
    }
    expect(rough.error.total).toBeCloseTo(Math.sqrt(lost / all), 9);
    expect(rough.model.active).toEqual(["rough"]);
  });

  it("takes DoRA along, whose change is of full rank, and says what it loses", async () => {
    const tuned = stir(await adapt(base, dora, { r: 1 }, { targets: ["q_proj"] }));
    const whole = await toLora(tuned, { rank: 8 });
    expect(distance(await answer(whole.model, rows), await answer(tuned, rows))).toBeLessThan(1e-11);
    expect((await toLora(tuned, { rank: 1 })).error.total).toBeGreaterThan(0.05);
    await expect(toLora(tuned, { rank: 0 })).rejects.toThrow(/rank is 0; it must be a whole number/);
    await expect(toLora(tuned, { rank: 1, as: "default" })).rejects.toThrow(/already has an adapter named default/);
  });
});
