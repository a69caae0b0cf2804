import { readFile } from "node:fs/promises";
import { splitTail, tokenBatches } from "strut/data";
import { randomModel, unfreeze } from "strut/models";
import type { Batch } from "strut/nn";
import { noGrad, Rng, scope } from "strut/tensor";
import { languageModelling, train } from "strut/training";
import { frozen, type Scaffold } from "./model.ts";

/** A window has the 64 characters of the context and the one that follows. */
const [WINDOW, ROWS] = [65, 16];

export type Start = "random" | "trained";

const made = new Map<Start, Promise<Scaffold>>();

/**
 * A LLaMA of two layers (64 wide, 4 heads, inner width 256, context 64) on the characters of Shakespeare's plays. From a random base the
 * task is their first half; a trained base has seen that, and its task is their second half in capitals. The figure is cross-entropy in
 * nats a character on the last tenth of the task's text.
 */
export function characters(start: Start): Promise<Scaffold> {
  if (!made.has(start)) made.set(start, build(start));
  return made.get(start)!;
}

async function build(start: Start): Promise<Scaffold> {
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
  const base = await baseOf(alphabet.length, start === "trained" ? plain.train : undefined);
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

type Split = ReturnType<typeof splitTail<Int32Array>>;

async function baseOf(vocabulary: number, text: Int32Array | undefined): Promise<Scaffold["base"]> {
  const rng = new Rng(65);
  const config = {
    model_type: "llama",
    vocab_size: vocabulary,
    hidden_size: 64,
    intermediate_size: 256,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    max_position_embeddings: 64,
  };
  const blank = randomModel(config, (name, shape) => rng.fork(name).normal(shape, 0.02 + 0.1 * Number(!name.includes("embed"))));
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
