import { adapt, adapterParameters, lora, parameters, randomModel, type Model } from "strut";
import { add, backward, cast, mul, noGrad, Parameter, scale, scope, sum, tensor, type Rng, type Tensor } from "strut/tensor";
import { languageModelLoss } from "strut/training";

export type Mode = "forward" | "lora" | "full" | "galore";

/** What is trained for a few steps: a model of random weights on one batch of random tokens. */
export interface Case {
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>> & { readonly vocab_size: number };
  readonly rows: number;
  readonly tokens: number;
  readonly targets: readonly string[];
}

/** GPT-2 of any width and depth, with 64 features a head. */
export const gpt2Case = (name: string, width: number, depth: number, vocabulary: number, rows: number, tokens: number): Case => ({
  name,
  config: { model_type: "gpt2", vocab_size: vocabulary, n_layer: depth, n_head: width / 64, n_embd: width, n_positions: 1024 },
  rows,
  tokens,
  targets: ["c_attn"],
});

/** GPT-2 small: 124,439,808 parameters, tied head. */
export const gpt2Small = gpt2Case("gpt2-step", 768, 12, 50257, 4, 128);

const llama = (size: string, width: number, inner: number, heads: number, depth: number): Case => ({
  name: `llama-step-${size}`,
  config: {
    model_type: "llama",
    vocab_size: 32000,
    hidden_size: width,
    intermediate_size: inner,
    num_attention_heads: heads,
    num_hidden_layers: depth,
    max_position_embeddings: 256,
  },
  rows: 4,
  tokens: 256,
  targets: ["q_proj", "k_proj", "v_proj"],
});

/** The peer's two LLaMAs, with a head of their own. */
export const llamas = { "9m": llama("9m", 128, 352, 4, 4), "60m": llama("60m", 512, 1376, 8, 8) } as const;

/** Random weights; with `from`, those of another model as f64. Full training is of the model's own weights. */
export async function makeModel({ config, targets }: Case, mode: Mode, rng: Rng, from?: Model): Promise<Model> {
  const source = from && new Map([...parameters(from), ...adapterParts(from)]);
  const draw = (name: string, shape: readonly number[]): Tensor => (source ? cast(source.get(name)!, "f64") : rng.fork(name).normal(shape, 0.02));
  const base = randomModel(config, draw, { dtype: from ? "f64" : "f32" });
  if (mode === "full" || mode === "galore") for (const parameter of parameters(base).values()) parameter.trainable = true;
  if (mode !== "lora") return base;
  const tuned = await adapt(base, lora, { r: 8, alpha: 16 }, { targets: [...targets], seed: 1 });
  // B is small instead of zero: otherwise A's first gradient is zero
  for (const [name, parameter] of adapterParts(tuned))
    if (source) parameter.assign(cast(source.get(name)!, "f64"));
    else if (name.endsWith("/B")) parameter.assign(rng.fork(name).normal(parameter.shape, 0.01));
  return tuned;
}

const adapterParts = (model: Model): Map<string, Parameter> => new Map([...model.adapters.values()].flatMap((set) => [...adapterParameters(set)]));

export const trainable = (model: Model): Map<string, Parameter> =>
  new Map([...parameters(model), ...adapterParts(model)].filter(([, { trainable: trains }]) => trains));

/** f32 gradient against an f64 central difference along a masked direction that touches every trained tensor. */
export async function checkGradient(tried: Case, mode: Mode, model: Model, batch: { ids: number[][] }, rng: Rng) {
  const gradients = scope(() => backward(languageModelLoss(model, batch)));
  const wide = await makeModel(tried, mode, rng, model);
  let analytic = 0;
  const moves: { parameter: Parameter; exact: Tensor; direction: Tensor }[] = [];
  for (const [name, parameter] of trainable(wide)) {
    const gradient = noGrad(() => cast(gradients.get(trainable(model).get(name)!)!, "f64"));
    const values = (await gradient.data()) as Float64Array;
    const norm = Math.sqrt(values.reduce((total, x) => total + x * x, 0));
    const mask = rng.fork(`mask/${name}`);
    const direction = tensor(
      values.map((x) => (mask.random() < 0.5 ? x / norm : 0)),
      parameter.shape,
      "f64",
    );
    analytic += await noGrad(() => sum(mul(gradient, direction))).item();
    moves.push({ parameter, exact: noGrad(() => cast(cast(parameter, "f32"), "f64")), direction });
  }
  const step = 1e-4;
  const at = async (factor: number): Promise<number> => {
    for (const { parameter, exact, direction } of moves) parameter.assign(noGrad(() => add(exact, scale(direction, factor))));
    return noGrad(() => scope(() => languageModelLoss(wide, batch))).item();
  };
  const numeric = ((await at(step)) - (await at(-step))) / (2 * step);
  return { analytic, numeric, rel_error: Math.abs(analytic - numeric) / Math.abs(numeric) };
}
