import { readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { beforeAll, describe, expect, it } from "vitest";
import { openText } from "../../src/recipe/open.ts";
import { openSafetensorsFile } from "../../src/formats/safetensors-folder.ts";
import { parseRecipe } from "../../src/recipe/read.ts";
import { json, names, strut, strutIn, temporary, type Ran } from "./strut.ts";

const folder = temporary();
const to = (name: string): string => join(folder, name);
const model = resolve("data/lm/stories260K");

/** A recipe that takes a second, with other lines at its end. */
const tiny = (training = "", rest = ""): string => `model: ${model}
data: { text: text.txt, window: 16, held_out: 0.1 }
options: { r: 2, lora_alpha: 4 }
target_modules: [q_proj, v_proj]
training:
  steps: 12
  batch_size: 2
  learning_rate: 1e-2
  checkpointEvery: 4
${training}${rest}`;

let count = 0;
async function trained(text: string, ...more: readonly string[]): Promise<Ran & { at: string }> {
  const [file, at] = [to(`recipe-${count}.yaml`), to(`out-${count++}`)];
  await writeFile(file, text);
  return { ...(await strut("train", "--recipe", file, "--out", at, ...more)), at };
}

beforeAll(async () => {
  await writeFile(to("text.txt"), (await readFile("data/text/tinyshakespeare.txt", "utf8")).slice(0, 4000));
});

describe("strut train", () => {
  it("says what matched and what did not, trains, and writes a PEFT directory", async () => {
    const { code, out, err, at } = await trained(
      tiny("  evaluateEvery: 6\n", "target_modules: [q_proj, v_proj, w_proj]\n").replace("target_modules: [q_proj, v_proj]\n", ""),
    );
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(/^adapted +10 modules: q_proj \(5\), v_proj \(5\)$/m);
    expect(out).toMatch(/^no match +w_proj$/m);
    expect(out.indexOf("no match")).toBeLessThan(out.indexOf("step "));
    expect(out).toMatch(/^step 12\/12 {2}loss \d\.\d{4} {2}[\d,]+ tokens\/s {2}0\.0 s left$/m);
    expect(out).toMatch(/^step 6 {2}held-out loss/m);
    expect(await names(at)).toEqual(["adapter", "checkpoints", "events.jsonl"]);
    expect(await names(join(at, "adapter"))).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    expect(await names(join(at, "checkpoints"))).toEqual(["step-0000008", "step-0000012"]);
    const events = (await readFile(join(at, "events.jsonl"), "utf8"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(events.map(({ event }) => event)).toEqual(expect.arrayContaining(["start", "step", "evaluation", "checkpoint", "end"]));
    expect(events.filter(({ event }) => event === "step")).toHaveLength(12);
    const evaluated = events.findLast(({ event }) => event === "evaluation")!;
    await writeFile(to("held-out.txt"), (await readFile(to("text.txt"), "utf8")).slice(3600));
    const again = json(await strut("eval", model, "--adapter", join(at, "adapter"), "--data", to("held-out.txt"), "--window", "16", "--json"));
    expect(again["tokens"]).toBe(evaluated["tokens"]);
    expect(Math.abs(again["loss"] - (evaluated["loss"] as number))).toBeLessThan(1e-6);
  });

  it("starts an adapter from what it measures on the text", async () => {
    const { code, err, at } = await trained(tiny("", "initializer: eva\ninitializerOptions: { rho: 1 }\ncalibrationBatches: 4\n"));
    expect([code, err]).toEqual([0, ""]);
    expect(JSON.parse(await readFile(join(at, "adapter", "adapter_config.json"), "utf8"))).toMatchObject({ init_lora_weights: "eva" });
  });

  it("writes the same bytes in a second run, and others with another seed", async () => {
    const weights = async (text: string): Promise<Buffer> => readFile(join((await trained(text)).at, "adapter", "adapter_model.safetensors"));
    const [first, second, third] = [await weights(tiny()), await weights(tiny()), await weights(tiny("  seed: 1\n"))];
    expect(second.equals(first)).toBe(true);
    expect(third.equals(first)).toBe(false);
  });

  it("streams the events as JSON lines with --json", async () => {
    const { out, at } = await trained(tiny(), "--json");
    const lines = out.trimEnd().split("\n");
    expect(JSON.parse(lines.at(-1)!)).toMatchObject({ event: "result", step: 12, reason: "finished", adapter: join(at, "adapter") });
    expect(`${lines.slice(0, -1).join("\n")}\n`).toBe(await readFile(join(at, "events.jsonl"), "utf8"));
  });

  it("merges on request, and trains every weight with the method full", async () => {
    const merged = await trained(tiny("", "merge: true\n"));
    expect(await names(join(merged.at, "merged"))).toEqual(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    const full = await trained(
      `model: ${model}\ndata: { text: text.txt, window: 16, heldOut: 0 }\nmethod: full\ntraining: { steps: 2, batchSize: 2, optimizer: sgd, optimizerOptions: { momentum: 0.9 }, learningRate: 0.01 }\n`,
    );
    expect([full.code, full.err]).toEqual([0, ""]);
    expect(await names(full.at)).toEqual(["checkpoints", "events.jsonl", "model"]);
    expect(full.out).toMatch(/^trains +260,032 parameters/m);
    for (const at of [join(merged.at, "merged"), join(full.at, "model")]) expect((await strut("eval", at, "--data", to("text.txt"))).code).toBe(0);
  });

  it("refuses a folder in use, resumes it, or starts anew in it and leaves other files alone", async () => {
    const { at } = await trained(tiny());
    const recipe = to(`recipe-${count - 1}.yaml`);
    await writeFile(join(at, "mine.txt"), "mine");
    expect((await strut("train", "--recipe", recipe, "--out", at)).err).toMatch(/is not empty.*\n.*--resume.*--overwrite/);
    expect((await strut("train", "--recipe", recipe, "--out", at, "--resume")).out).toMatch(/^going on from .*step-0000012, step 12$/m);
    const anew = await strut("train", "--recipe", recipe, "--out", at, "--overwrite");
    expect(anew.out).not.toContain("going on");
    expect(await names(at)).toEqual(["adapter", "checkpoints", "events.jsonl", "mine.txt"]);
  });

  it("stops at a signal with code 130, and says how to go on", async () => {
    const file = to("stopped.yaml");
    await writeFile(file, tiny());
    const { code, out } = await strutIn({ signal: AbortSignal.abort() }, "train", "--recipe", file, "--out", to("stopped"));
    expect(code).toBe(130);
    expect(out).toContain(`Stopped. To go on: strut train --recipe ${file} --out ${to("stopped")} --resume\n`);
    expect(await names(to("stopped"))).toEqual(["checkpoints", "events.jsonl"]);
  });

  it("limits gradients by value and keeps weights on the grid of bf16 where it is told to", async () => {
    const text = tiny("  optimizer: sgd\n  clip_value: 1e-6\n  stochastic_rounding: true\n  schedule: constant\n").replace("1e-2", "1");
    const { code, at } = await trained(text);
    expect(code).toBe(0);
    const file = await openSafetensorsFile(join(at, "adapter", "adapter_model.safetensors"));
    const values: number[] = [];
    for (const name of file.entries.keys()) if (name.includes("lora_B")) values.push(...new Float32Array((await file.read(name)).buffer));
    await file.close();
    const largest = Math.max(...values.map(Math.abs));
    // B begins at 0 and makes twelve steps of a millionth at most, each rounded up to a 128th
    expect(largest).toBeGreaterThan(6e-6);
    expect(largest).toBeLessThan(12e-6 * (1 + 2 ** -6));
    expect(values.filter((x) => new Uint32Array(Float32Array.of(x).buffer)[0]! & 0xffff)).toEqual([]);
  });

  it("shows one line in place on a terminal", async () => {
    const file = to("live.yaml");
    await writeFile(file, tiny());
    const { out } = await strutIn({ terminal: true, env: { NO_COLOR: "1" } }, "train", "--recipe", file, "--out", to("live"));
    expect(out.split("\r\u001b[2K").map((shown) => shown.split("  ")[0])).toEqual(expect.arrayContaining(["step 1/12", "step 2/12"]));
  });
});

describe("training from scratch", () => {
  const scratch = ["--from-scratch", "examples/tinystories-9m.config.json", "--tokenizer", model];

  it("starts at random weights of a config, at the loss of a guess, and writes a folder that opens", async () => {
    const { code, out, err, at } = await trained(
      tiny().replace("options: { r: 2, lora_alpha: 4 }\ntarget_modules: [q_proj, v_proj]\n", ""),
      ...scratch,
      "--memory",
    );
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(/^model +examples\/tinystories-9m\.config\.json, from random weights$/m);
    const first = JSON.parse((await readFile(join(at, "events.jsonl"), "utf8")).split("\n").find((line) => line.includes('"step":1,'))!) as { loss: number };
    expect(first.loss).toBeCloseTo(Math.log(512), 0);
    for (const part of ["weights", "gradients", "optimizer states", "activations", "peak of the step", "peak of the process"])
      expect(out).toMatch(new RegExp(`^${part} +[\\d.]+ [kMG]B$`, "m"));
    expect((await strut("eval", join(at, "model"), "--data", to("text.txt"))).code).toBe(0);
  });

  it("needs no recipe, trains an adapter on random weights and writes both, and says what is missing", async () => {
    await writeFile(to("few.txt"), "Once upon a time. ".repeat(900));
    const ran = await strut("train", ...scratch, "--data", to("few.txt"), "--out", to("bare"));
    expect([ran.code, ran.err]).toEqual([0, ""]);
    const lora = await trained(tiny("", `from_scratch: true\ntokenizer: ${model}\nmethod: lora\n`));
    expect(await names(lora.at)).toEqual(["adapter", "checkpoints", "events.jsonl", "merged"]);
    expect((await strut("train", "--from-scratch", "examples/tinystories-9m.config.json", "--out", to("none"))).err).toMatch(
      /needs '--recipe <file>', or '--from-scratch <config>' with '--data <text>'/,
    );
    const untold = await strut("train", "--from-scratch", "examples/tinystories-9m.config.json", "--data", to("few.txt"), "--out", to("none"));
    expect(untold.err).toMatch(/is a config\.json, which brings no tokenizer\.?\n.*tokenizer/);
  });

  it("says how to go on with all that was named", async () => {
    await writeFile(to("few.txt"), "Once upon a time. ".repeat(900));
    const { code, out } = await strutIn({ signal: AbortSignal.abort() }, "train", ...scratch, "--data", to("few.txt"), "--out", to("halted"));
    expect(code).toBe(130);
    expect(out).toContain(`Stopped. To go on: strut train ${scratch.join(" ")} --data ${to("few.txt")} --out ${to("halted")} --resume\n`);
  });

  it("reads texts that are packed, and says so of one that is broken", async () => {
    await writeFile(to("packed.txt.gz"), gzipSync("Once upon a time. ".repeat(900)));
    expect((await strut("train", ...scratch, "--data", to("packed.txt.gz"), "--out", to("packed"))).code).toBe(0);
    await writeFile(to("broken.txt.gz"), gzipSync("Once upon a time. ".repeat(900)).subarray(0, 60));
    expect((await strut("train", ...scratch, "--data", to("broken.txt.gz"), "--out", to("broken"))).err).toMatch(/is no text: it cannot be unpacked/);
  });
});

describe("transformers' names of optimisers", () => {
  const training = (text: string) => parseRecipe(`model: m\ndata: { text: t }\ntraining: { ${text} }`).training;

  it("stand for ours, with their arguments and targets", () => {
    expect(
      training('optim: galore_adamw_8bit_layerwise, optim_args: "rank=64, update_proj_gap=100, scale=0.10", optim_target_modules: [attn, mlp]'),
    ).toMatchObject({
      optimizer: "galore",
      optimizerOptions: { rank: 64, update_proj_gap: 100, scale: 0.1, targetModules: ["attn", "mlp"] },
      innerOptimizer: "adamw",
      innerOptions: { state: "8bit" },
      updateInBackward: true,
      weightDecay: 0,
      decayOn: "matrices",
    });
    expect(training("optim: adamw_torch, weight_decay: 0.1")).toMatchObject({ optimizer: "adamw", weightDecay: 0.1 });
  });

  it.each([
    ["optim: galore_adam", /line 3: there is no optim "galore_adam"/, /galore_adamw/],
    ["optim: galore_adamw", /galore_adamw needs optimTargetModules/, /attn/],
    ["optim: sgd, optim_target_modules: [attn]", /sgd has no target modules/, /./],
    ["optim: sgd, optim_args: rank", /optimArgs is "rank"/, /rank=64/],
    ["optim_args: rank=3", /go with optim, which is missing/, /./],
  ])("%s ends in a sentence", (text, message, hint) => {
    expect(() => training(text)).toThrow(expect.objectContaining({ message: expect.stringMatching(message), hint: expect.stringMatching(hint) }));
  });

  it("train as ours do", async () => {
    const galore = await trained(
      `model: ${model}\nmethod: full\ndata: { text: text.txt, window: 16 }\ntraining: { steps: 3, batchSize: 2, optim: galore_adamw, optim_args: "rank=4", optim_target_modules: [attn, mlp], groups: [{ match: norm, learningRate: 0 }], scheduleOptions: {}, ema: { decay: 0.5 } }\n`,
    );
    expect([galore.code, galore.err]).toEqual([0, ""]);
  });
});

describe("a training that cannot be", () => {
  it.each([
    ["targets that match nothing", tiny().replace("[q_proj, v_proj]", "[q_projj]"), /q_projj.*\n.*q_proj/],
    ["a rank beyond the matrix", tiny().replace("r: 2", "r: 65"), /rank 65 is above what .* can have/],
    ["an unknown option, with its nearest name", tiny().replace("lora_alpha", "lora_alhpa"), /lora has no option lora_alhpa.*\n.*alpha/],
    ["an unknown method", tiny("", "method: loora\n"), /no method "loora".*\n.*lora/],
    ["an unknown initialiser", tiny("", "initializer: evaa\n"), /no initialiser "evaa".*\n.*eva/],
    ["an initialiser that the adapter cannot take", tiny("", "initializer: lora-sb\n"), /lora-sb/],
    ["an unknown optimiser", tiny("  optimizer: addamw\n"), /no optimiser "addamw".*\n.*adamw/],
    ["a window beyond the context", tiny().replace("window: 16", "window: 600"), /data\.window is 600/],
    ["a text too short for a batch", tiny().replace("batch_size: 2", "batch_size: 2000"), /one batch of 2000 windows of 16 needs 32000/],
    ["a text that is not there", tiny().replace("text.txt", "nowhere.txt"), /There is no file or folder .*nowhere\.txt/],
    ["a model that is not there", tiny().replace(model, "nowhere"), /There is no file or folder .*nowhere/],
    ["options for full training", tiny("", "method: full\n").replace(/target.*\n/, ""), /trains every weight, so options has no meaning/],
    [
      "early stopping with nothing held out",
      tiny("  earlyStopping: { patience: 1 }\n").replace("held_out: 0.1", "held_out: 0"),
      /early stopping needs evaluations/,
    ],
  ])("%s: one sentence, and no folder", async (_, text, about) => {
    const { code, err, at } = await trained(text);
    expect(code).toBe(1);
    expect(err).toMatch(about);
    expect(err).toMatch(/^strut: \S/);
    expect(await names(at)).toEqual([]);
  });

  it("a loss that is not finite stops, names the step, and keeps the last good checkpoint", async () => {
    const { code, err, at } = await trained(tiny("  schedule: constant\n").replace("1e-2", "1e38").replace("checkpointEvery: 4", "checkpointEvery: 1"));
    expect(code).toBe(1);
    expect(err).toMatch(/^strut: .*(NaN|Infinity|not finite).*/);
    expect(err).toMatch(/step \d/);
    expect(await names(at)).not.toContain("adapter");
  });

  it("a resume with another recipe", async () => {
    const { at } = await trained(tiny());
    await writeFile(to("other.yaml"), tiny().replace("1e-2", "2e-2"));
    const { code, err } = await strut("train", "--recipe", to("other.yaml"), "--out", at, "--resume");
    expect(code).toBe(1);
    expect(err).toMatch(/belongs to another run: learningRate was 0\.01, now it is 0\.02/);
  });
});

describe("reading recipes", () => {
  it.each([
    ["modl: x\n", /^r\.yaml, line 1: a recipe has no key "modl"$/, /Did you mean model\?/],
    ["model: a\ndata:\n  text: b\ntraining:\n  lerning_rate: 3\n", /line 5: training has no key "lerning_rate"/, /learningRate/],
    ["model: a\ndata: { text: b }\ntraining:\n  learning_rate: fast\n", /line 4: training\.learning_rate is "fast": expected number/, /learningRate:/],
    ["model: a\ndata: { text: b }\ntraining: { schedule: linaer }", /line 3: training\.schedule is "linaer"/, /constant, linear, cosine/],
    ["model: a\ndata: { text: b }\ntraining:\n  early_stopping: {}\n", /line 4: training\.early_stopping\.patience is missing/, /evaluations in a row/],
    ["data: { text: b }", /^r\.yaml: model is missing$/, /folder of the base model/],
    ["model: a\nmodel: b\n", /line 2: it is not valid YAML: Map keys must be unique/, /./],
    ["model: [", /line 1: it is not valid YAML/, /./],
    ["model: a\ndata: { text: b }\ntargets: q\ntarget_modules: [q]", /line 4: targets and target_modules are the same key/, /./],
    ["- a", /it holds no keys/, /examples/],
    ["", /it holds no keys/, /examples/],
    ["__proto__: { model: a }", /a recipe has no key "__proto__"/, /./],
    ["model: !!js/function x\n", /Unresolved tag/, /./],
  ])("%j ends in a sentence with its line", (text, message, hint) => {
    let error: unknown;
    try {
      parseRecipe(text, "r.yaml");
    } catch (thrown) {
      error = thrown;
    }
    expect((error as Error).name).toBe("StrutError");
    expect((error as Error).message).toMatch(message);
    expect((error as { hint: string }).hint).toMatch(hint);
  });

  it("paths are relative to the recipe, null is the default, and both spellings are read", () => {
    const recipe = parseRecipe(
      "model: ../m\ndata: { text: /t.txt, held_out: 0.2 }\ntarget_modules: all-linear\nbias:\ntraining: { batch_size: 2, earlyStopping: { min_delta: 1, patience: 2 } }",
      "a/b/r.yaml",
    );
    expect(recipe).toMatchObject({
      model: join("a", "m"),
      data: { text: "/t.txt", heldOut: 0.2 },
      targets: "all-linear",
      training: { batchSize: 2, earlyStopping: { minDelta: 1, patience: 2 }, schedule: "linear" },
    });
    expect(recipe.bias).toBeUndefined();
    expect(parseRecipe('{"model": "m", "data": {"text": "t"}}').method).toBe("lora");
  });

  it("the examples are recipes of what is bundled", async () => {
    for (const name of (await names("examples")).filter((file) => file.endsWith(".yaml"))) {
      const recipe = parseRecipe(await readFile(join("examples", name), "utf8"), join("examples", name));
      if (recipe.fromScratch) expect(JSON.parse(await readFile(recipe.model, "utf8"))).toHaveProperty("model_type");
      else expect(await names(recipe.model)).toContain("config.json");
      expect((await openText(recipe.data.text)).length).toBeGreaterThan(1e6);
    }
  });
});
