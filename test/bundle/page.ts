// An application that trains an adapter, saves it and loads it again.
import { adapt, loadAdapter, lora, randomModel, saveAdapter, start, train, Rng } from "strut";
import { files } from "strut/formats";

const config = { model_type: "gpt2", vocab_size: 16, n_layer: 1, n_head: 2, n_embd: 8, n_positions: 16 };

export async function run() {
  const { backend } = await start();
  const base = randomModel(config, (name, shape) => new Rng(1).fork(name).normal(shape, 0.3));
  const tuned = await adapt(base, lora, { r: 2 }, { targets: ["c_attn"], seed: 1 });
  const losses: number[] = [];
  await train(tuned, {
    batches: [{ ids: [[1, 2, 3, 4, 5]] }],
    steps: 2,
    learningRate: 0.05,
    onEvent: (event) => void (event.event === "step" && losses.push(event.loss)),
  });
  await saveAdapter(tuned, "adapter");
  const again = await loadAdapter(base, "adapter", { methods: [lora] });
  return { backend: backend.name, threads: backend.threads, losses, saved: await files.readdir("adapter"), loaded: [...again.adapters.keys()] };
}
