// Writes adapters and merged models with strut, and the logits strut gets from them, for check.py to open with the real PEFT.
// usage: npm run build && node test/interop/python/write.mjs OUT
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  adapt,
  adapterParameters,
  bone,
  dora,
  evaluate,
  forward,
  ia3,
  loadModel,
  loha,
  lokr,
  lora,
  merge,
  noGrad,
  Parameter,
  Rng,
  rslora,
  saveModel,
  saveAdapter,
  start,
  tensor,
} from "strut";
import { allora, randlora, vera } from "strut/adapters";
import { splitTail } from "strut/data";
import { loadTokenizer } from "strut/formats";

const out = process.argv[2];
if (!out) throw new Error("usage: node test/interop/python/write.mjs OUT");
await start();

const llama = "stories260K";
const gpt2 = "gpt-nano-sort";
const cases = [
  ["lora", llama, lora, { r: 4, alpha: 8 }, {}],
  ["lora-all-linear", llama, lora, { r: 8, alpha: 16, dropout: 0.1 }, { targets: "all-linear" }],
  [
    "lora-patterns",
    llama,
    lora,
    { r: 4, alpha: 8 },
    { targets: ["q_proj", "v_proj", "down_proj"], rankPattern: { "layers.0.self_attn.q_proj": 2, v_proj: 6 }, alphaPattern: { down_proj: 3.5 } },
  ],
  ["lora-embedding", llama, lora, { r: 4 }, { targets: ["embed_tokens", "q_proj"] }],
  ["lora-embedding-tied", llama, lora, { r: 4 }, { targets: ["embed_tokens", "q_proj"], ensureWeightTying: true }],
  ["lora-head", llama, lora, { r: 4 }, { targets: ["lm_head", "v_proj"] }],
  ["lora-saved-norm", llama, lora, { r: 4 }, { targets: ["q_proj"], modulesToSave: ["norm"] }],
  ["lora-tokens", llama, lora, { r: 4 }, { targets: ["q_proj"], trainableTokenIndices: [5, 17, 400] }],
  [
    "lora-replicated",
    llama,
    lora,
    { r: 4 },
    {
      targets: ["q_proj", "v_proj"],
      layerReplication: [
        [0, 3],
        [2, 5],
      ],
    },
  ],
  ["allora-asf", llama, allora, { r: 4, asf: true }, { targets: ["q_proj", "down_proj"] }],
  ["allora-patterns", llama, allora, { r: 4 }, { targets: ["q_proj", "v_proj"], rankPattern: { v_proj: 2 } }],
  ["rslora", llama, rslora, { r: 8, alpha: 4 }, { targets: ["gate_proj", "up_proj"] }],
  ["dora", llama, dora, { r: 4, alpha: 8 }, { targets: ["q_proj", "o_proj", "down_proj"] }],
  ["gpt2-lora", gpt2, lora, { r: 3, alpha: 6 }, { targets: "all-linear" }],
  ["gpt2-dora", gpt2, dora, { r: 3, alpha: 6 }, { targets: ["c_attn", "mlp.c_proj"] }],
  ["gpt2-bias", gpt2, lora, { r: 3 }, { targets: ["c_attn"], bias: "all" }],
  ["vera", llama, vera, { r: 80 }, { targets: ["q_proj", "v_proj", "down_proj"] }],
  ["vera-noproj", llama, vera, { r: 16, projectionPrngKey: 3, saveProjection: false }, { targets: ["q_proj", "up_proj"] }],
  ["randlora", llama, randlora, { r: 8, randloraAlpha: 16 }, { targets: ["q_proj", "v_proj", "down_proj"] }],
  ["randlora-sparse", llama, randlora, { r: 10, randloraAlpha: 16, sparse: true, saveProjection: false }, { targets: ["q_proj", "v_proj"] }],
  ["randlora-noproj", llama, randlora, { r: 8, randloraAlpha: 16, saveProjection: false }, { targets: ["q_proj", "up_proj"] }],
  ["gpt2-vera", gpt2, vera, { r: 24 }, { targets: ["c_attn"] }],
  ["gpt2-lora-bias", gpt2, lora, { r: 3, loraBias: true }, { targets: ["c_attn", "c_fc"] }],
  ["loha", llama, loha, { r: 4, alpha: 8, rankDropout: 0.1 }, { targets: "all-linear" }],
  ["loha-patterns", llama, loha, { r: 4 }, { targets: ["q_proj", "v_proj"], rankPattern: { v_proj: 2 }, alphaPattern: { q_proj: 3 } }],
  ["lokr", llama, lokr, { r: 2, alpha: 4 }, { targets: "all-linear" }],
  ["lokr-factor", llama, lokr, { r: 8, decomposeFactor: 16 }, { targets: ["q_proj", "down_proj"] }],
  ["lokr-decompose-both", llama, lokr, { r: 2, decomposeBoth: true, initWeights: "lycoris" }, { targets: ["q_proj", "v_proj"] }],
  ["ia3", llama, ia3, {}, {}],
  ["ia3-no-feedforward", llama, ia3, {}, { targets: ["k_proj", "v_proj"] }],
  ["ia3-own-feedforward", llama, ia3, { feedforwardModules: ["q_proj"] }, { targets: ["q_proj", "down_proj"] }],
  ["gpt2-ia3", gpt2, ia3, {}, { targets: ["c_attn", "mlp.c_proj"] }],
  ["miss", llama, bone, { r: 8, missDropout: 0.1 }, { targets: ["q_proj", "down_proj"] }],
  ["miss-bat", llama, bone, { r: 4, initWeights: "bat" }, { targets: ["q_proj", "v_proj"] }],
  ["miss-mini", llama, bone, { r: 8, miniR: 4, initWeights: "mini" }, { targets: ["q_proj", "down_proj"] }],
];

const record = {};
for (const [name, base, method, options, targeting] of cases) {
  const model = await loadModel(join("data/lm", base));
  const tuned = await adapt(model, method, options, { ...targeting, seed: 1 });
  const rng = new Rng(7).fork(name);
  for (const set of tuned.adapters.values())
    for (const [path, parameter] of adapterParameters(set)) {
      if (!parameter.trainable) continue;
      const noise = await rng.fork(path).normal(parameter.shape, 0.05).data();
      const values = Array.from(await parameter.data(), (x, i) => (path.endsWith("/m") ? x * (1 + noise[i]) : x + noise[i]));
      parameter.assign(new Parameter(tensor(values, parameter.shape)));
    }
  await saveAdapter(tuned, join(out, name, "adapter"), { overwrite: true });
  await saveModel(merge(tuned), join(out, name, "merged"), { overwrite: true });
  const ids = base === llama ? [1, 403, 407, 261, 378, 432, 383, 286, 261, 376] : [0, 2, 1, 1, 0, 2, 0, 0];
  const logits = noGrad(() => forward(tuned, tensor(ids, [1, ids.length], "i32")));
  record[name] = { base, ids, shape: logits.shape, logits: [...(await logits.data())] };
}

const folder = join("data/lm", llama);
// the text and windows of `npm start`
const { heldOut: tail } = splitTail(readFileSync("data/text/tinyshakespeare.txt", "utf8"), 0.1);
const held = (await loadTokenizer(folder)).encode(tail, { special: false });
const { loss, tokens } = await evaluate(await loadModel(folder), held, { window: 128 });
record.evaluation = { base: llama, window: 128, loss, tokens, held };
writeFileSync(join(out, "strut.json"), JSON.stringify(record));
