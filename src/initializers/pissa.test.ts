import { beforeAll, describe, expect, it } from "vitest";
import { adapt, attachedTo, lora, pissa, toLora } from "../adapters/index.ts";
import { singularValues } from "../linalg/index.ts";
import { loadModel, type Model } from "../models/index.ts";
import { matmul, noGrad, scale, start, transpose, type Parameter } from "../tensor/index.ts";
import { numbers } from "../../test/support/site.ts";
import { moved, parametersOf } from "../../test/support/starts.ts";

let base: Model;

beforeAll(async () => {
  await start();
  base = await loadModel("data/lm/stories260K");
});

const targets = ["q_proj", "v_proj", "down_proj"];
const begin = (method: Parameters<typeof adapt>[1], options: object): Promise<Model> => adapt(base, method, options as never, { targets });

describe("starts that the base gives away", () => {
  it("leave the model where it is, to become a LoRA of twice the rank that is exact", async () => {
    const model = await begin(pissa, { r: 3, alpha: 6 });
    expect(await moved(model, base)).toBeLessThan(1e-4);
    const [path, { A, B }] = [...parametersOf(model)][0] as [string, { A: Parameter; B: Parameter }];
    const sigma = (await numbers(await singularValues(base.layers.get(path)!.site!.weight.toDense()))).slice(0, 3);
    const gram = await numbers(noGrad(() => matmul(transpose(B), B)));
    sigma.forEach((s, i) => expect(gram[i * 4]! / (s / 2), "BᵀB = diag(S/s)").toBeCloseTo(1, 4));
    for (const p of [A, B]) p.assign(noGrad(() => scale(p, 1.3)));
    const { model: plain, error } = await toLora(model, { rank: 6 });
    expect(error.total).toBeLessThan(1e-5);
    expect(await moved(plain, model)).toBeLessThan(1e-3);
  });

  it("may be randomised, and orthogonal starts leave the base alone", async () => {
    const exact = await begin(pissa, { r: 3 });
    const near = await begin(pissa, { r: 3, initLoraWeights: "pissa_niter_16" });
    const norm = async (model: Model): Promise<number> => Math.hypot(...(await numbers([...parametersOf(model).values()][0]!["A"]!)));
    expect((await norm(near)) / (await norm(exact))).toBeCloseTo(1, 3);
    const orthogonal = await begin(lora, { r: 4, initLoraWeights: "orthogonal" });
    expect(attachedTo(orthogonal, "default")!.taken.size).toBe(0);
    expect(await moved(orthogonal, base)).toBeLessThan(1e-4);
    await expect(begin(lora, { r: 3, initLoraWeights: "orthogonal" })).rejects.toThrow(/needs an even rank/);
  });
});
