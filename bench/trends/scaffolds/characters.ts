import { readFile } from "node:fs/promises";
import { splitTail, tokenBatches } from "strut/data";
import { randomModel, unfreeze } from "strut/models";
import type { Batch } from "strut/nn";
import { noGrad, ones, Rng, scope, zeros } from "strut/tensor";
import { languageModelling, train } from "strut/training";
import { frozen, type Course, type Scaffold } from "./model.ts";

/** A window has the 64 characters of the context and the one that follows. */
const [WINDOW, ROWS] = [65, 16];

export type Start = "random" | "trained";
export type Kind = "llama" | "gpt2";

const made = new Map<string, Promise<Scaffold>>();

/**
 * A LLaMA (or GPT-2, which has biases) of two layers or so many (64 wide, 4 heads, inner width 256, context 64) on the characters of Shakespeare's plays. From a random base the
 * task is their first half; a trained base has seen that, and its task is their second half in capitals. The figure is cross-entropy in
 * nats a character on the last tenth of the task's text.
 */
export function characters(start: Start, kind: Kind = "llama", depth = 2): Promise<Scaffold> {
  const key = `${start} ${kind} ${depth}`;
  if (!made.has(key)) made.set(key, build(start, kind, depth));
  return made.get(key)!;
}

async function build(start: Start, kind: Kind, depth: number): Promise<Scaffold> {
  const plays = await readFile("data/text/tinyshakespeare.txt", "utf8");
  const alphabet = [...new Set(plays)].sort();
  const half = Math.floor(plays.length / 2);
  const encode = (text: string): Int32Array => Int32Array.from(text, (character) => alphabet.indexOf(character));
  const [plain, capitals] = [plays.slice(0, half), plays.slice(half).toUpperCase()].map((text) => splitTail(encode(text))) as [Split, Split];
  const { train: seen, heldOut } = start === "random" ? plain : capitals;
  const sources = new Map<number, ReturnType<typeof tokenBatches>>();
  const source = (seed: number) => sources.get(seed) ?? sources.set(seed, tokenBatches(seen, { window: WINDOW, rows: ROWS, seed })).get(seed)!;
  const held = tokenBatches(heldOut, { window: WINDOW, rows: 64 });
  const test: readonly Batch[] = [await held.batch(0), await held.batch(1)];
  const base = await baseOf(kind, depth, alphabet.length, start === "trained" ? plain.train : undefined);
  return {
    base,
    task: languageModelling,
    batch: (seed, k) => source(seed).batch(k),
    async measure(model) {
      const losses = await Promise.all(test.map((batch) => noGrad(() => scope(() => languageModelling.loss(model, batch))).item()));
      return losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
    },
  };
}

/** The course on which the sheets compare optimisers: 500 steps, the rate rising over 50 of them, then along a cosine to a tenth. */
export const pretraining = (learningRate: Course["learningRate"]): Course => ({
  steps: 500,
  learningRate,
  more: { warmup: 50, schedule: "cosine", scheduleOptions: { minRate: 0.1 } },
});

type Split = ReturnType<typeof splitTail<Int32Array>>;

async function baseOf(kind: Kind, depth: number, vocabulary: number, text: Int32Array | undefined): Promise<Scaffold["base"]> {
  const rng = new Rng(65);
  const sizes = {
    llama: { hidden_size: 64, intermediate_size: 256, num_hidden_layers: depth, num_attention_heads: 4, max_position_embeddings: 64 },
    gpt2: { n_embd: 64, n_inner: 256, n_layer: depth, n_head: 4, n_positions: 64 },
  };
  const blank = randomModel({ model_type: kind, vocab_size: vocabulary, ...sizes[kind] }, (name, shape) => {
    if (kind === "gpt2" && shape.length === 1) return name.endsWith("weight") ? ones(shape) : zeros(shape);
    return rng.fork(name).normal(shape, 0.02 + 0.1 * Number(!/embed|wte|wpe/.test(name)));
  });
  if (!text) return blank;
  const { model } = await train(unfreeze(blank), {
    data: tokenBatches(text, { window: WINDOW, rows: ROWS }),
    steps: 300,
    learningRate: 5e-3,
    schedule: "cosine",
    warmup: 20,
    clip: 1,
  });
  return frozen(model);
}
