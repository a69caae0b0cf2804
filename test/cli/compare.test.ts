import { execFileSync } from "node:child_process";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { parseHTML } from "linkedom";
import { beforeAll, describe, expect, it } from "vitest";
import { adapt, dora, lora, saveAdapter } from "../../src/adapters/index.ts";
import { splitTail, tokenBatches } from "../../src/data/index.ts";
import { loadTokenizer } from "../../src/formats/tokenizer.ts";
import { evaluate, loadModel } from "../../src/models/index.ts";
import { start } from "../../src/tensor/index.ts";
import { train } from "../../src/training/index.ts";
import { build, Strut, type Ended } from "./dist.ts";
import { names, strut, temporary, type Ran } from "./strut.ts";

const folder = temporary();
const to = (name: string): string => join(folder, name);
const model = resolve("data/lm/stories260K");

beforeAll(async () => {
  build();
  await writeFile(to("text.txt"), (await readFile("data/text/tinyshakespeare.txt", "utf8")).slice(0, 30_000));
});

/** Two methods, two rates and two seeds: seven runs of a few steps. */
const tiny = (out: string, ...more: readonly string[]): string[] => {
  const given = ["--data", to("text.txt"), "--methods", "lora,dora", "--budget", "3000", "--rates", "1e-3,1e-2", "--seeds", "2", "--steps", "6"];
  return ["compare", ...given, "--batch-size", "2", "--window", "32", "--out", to(out), ...more];
};

const results = async (out: string): Promise<Record<string, any>> => JSON.parse(await readFile(join(to(out), "result.json"), "utf8")) as Record<string, any>;

/** A run's losses alone: times and memory differ between runs. */
const losses = async (out: string): Promise<unknown> => {
  const { base, rows } = await results(out);
  return [base.loss, ...rows.map(({ label, rate, search, loss }: Record<string, unknown>) => ({ label, rate, search, loss }))];
};

let whole: Promise<Ended> | undefined;
const finished = (): Promise<Ended> => (whole ??= new Strut(...tiny("whole")).ended);

/** Processes of a comparison that still run. */
const running = (out: string): number[] =>
  execFileSync("ps", ["-eo", "pid=,args="], { encoding: "utf8" })
    .split("\n")
    .filter((line) => line.includes(`compare-job ${to(out)} `))
    .map((line) => Number.parseInt(line, 10));

async function untilNoneRun(out: string): Promise<void> {
  for (let i = 0; i < 100 && running(out).length > 0; i++) await new Promise((later) => setTimeout(later, 50));
  expect(running(out)).toEqual([]);
}

describe("strut compare", () => {
  it("trains each method at each rate and from each seed, and says what came of it", async () => {
    const { code, out, err } = await finished();
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(/^lora: r = 2, stores 2,240 parameters$/m);
    expect(out).toMatch(/^dora: r = 2, stores 2,720 parameters$/m);
    expect(out).toMatch(/^7\/7 {2}\S.*: loss \d\.\d{4}, /m);
    expect(out).toMatch(/^lora +r = 2 +0\.01 ↑ +\d\.\d{4} ± \d\.\d{4}/m);
    const again = /^Again: strut (.*)$/m.exec(out)![1]!.split(" ");
    expect(again.toSorted()).toEqual(tiny("whole").join(" ").replace("1e-3,1e-2", "0.001,0.01").split(" ").toSorted());
    expect(await names(to("whole"))).toEqual(["base.json", "index.html", "jobs", "pareto.svg", "result.json", "setup.json", "table.md"]);
    expect(await names(join(to("whole"), "jobs", "lora"))).toHaveLength(3);
    const { rows, base } = await results("whole");
    expect(base).toMatchObject({ parameters: 260_032, bytes: (await stat(join(model, "model.safetensors"))).size });
    for (const row of rows) {
      const [a, b] = row.loss.seeds as [number, number];
      expect(row.loss.mean).toBeCloseTo((a + b) / 2, 12);
      expect(row.loss.spread).toBeCloseTo(Math.abs(a - b) / Math.SQRT2, 12);
      expect(row.rate).toBe(row.search.toSorted((x: any, y: any) => x.validation - y.validation)[0].rate);
      expect(row).toMatchObject({ mergeable: true, optimizerBytes: 8 * row.parameters });
      expect(row.loss.mean).toBeLessThan(base.loss);
      expect(row.peakBytes).toBeGreaterThan(row.tensorBytes);
      expect(row.secondsPerStep).toBeGreaterThan(0);
    }
  });

  it("measures what training by hand gives, on windows that the search never saw", async () => {
    await finished();
    const { rows, base: measured } = await results("whole");
    const text = await readFile(to("text.txt"), "utf8");
    const tokenizer = await loadTokenizer(model);
    const ids = splitTail(text, 0.1);
    const encode = (part: string): Int32Array => Int32Array.from(tokenizer.encode(part, { special: false }));
    const heldOut = encode(ids.heldOut);
    const test = heldOut.subarray(heldOut.length >> 1);
    await start();
    const base = await loadModel(model);
    expect(measured.loss).toBeCloseTo((await evaluate(base, test, { window: 32 })).loss, 9);
    for (const [method, label] of [
      [lora, "lora"],
      [dora, "dora"],
    ] as const) {
      const row = rows.find((one: Record<string, unknown>) => one["label"] === label);
      const tuned = await adapt(base, method, { r: 2 }, { seed: 1 });
      await train(tuned, {
        data: tokenBatches(encode(ids.train), { window: 32, rows: 2, seed: 1 }),
        steps: 6,
        learningRate: row.rate,
        weightDecay: 0,
        schedule: "linear",
        warmup: 0.05,
        clip: 1,
        seed: 1,
      });
      expect(row.loss.seeds[1]).toBeCloseTo((await evaluate(tuned, test, { window: 32 })).loss, 6);
      await saveAdapter(tuned, to(label));
      expect(row.bytes).toBe((await stat(join(to(label), "adapter_model.safetensors"))).size);
    }
  });

  it("writes one page that needs nothing else, in light and dark", async () => {
    await finished();
    const page = await readFile(join(to("whole"), "index.html"), "utf8");
    const { document } = parseHTML(page);
    expect(document.querySelectorAll("[src],[href],link,script,iframe").length).toBe(0);
    expect(page.replaceAll("http://www.w3.org/2000/svg", "")).not.toMatch(/https?:|@import|url\(/);
    expect(page).toContain("prefers-color-scheme:dark");
    expect(document.documentElement.getAttribute("lang")).toBe("en");
    expect([...document.querySelectorAll("tbody th")].map((head) => [head.getAttribute("scope"), head.textContent])).toEqual(
      [["row", "the base model"]].concat((await results("whole"))["rows"].map(({ label }: { label: string }) => ["row", label])),
    );
    expect(document.querySelectorAll("thead th[scope=col]").length).toBe(11);
    const svg = document.querySelector("svg")!;
    expect(svg.getAttribute("role")).toBe("img");
    expect(svg.querySelectorAll("circle").length).toBe(2);
    expect(page).toContain((await readFile(join(to("whole"), "pareto.svg"), "utf8")).trim());
    const table = (await readFile(join(to("whole"), "table.md"), "utf8")).split("\n\n")[0]!.split("\n");
    expect(table.map((line) => line.split("|").length)).toEqual(Array.from({ length: 5 }, () => 13));
  });

  it("killed in the middle it leaves no process behind; run again it does what is missing, with the same result", async () => {
    await finished();
    const killed = new Strut(...tiny("killed"));
    await killed.until(/^2\/7 /m);
    killed.child.kill("SIGKILL");
    await killed.ended;
    await untilNoneRun("killed");
    const kept = await readFile(join(to("killed"), "base.json"));
    const { code, out, err } = await new Strut(...tiny("killed")).ended;
    expect([code, err]).toEqual([0, ""]);
    expect(out).not.toMatch(/the base model: loss/);
    expect((await readFile(join(to("killed"), "base.json"))).equals(kept)).toBe(true);
    expect(await losses("killed")).toEqual(await losses("whole"));
  });

  it("a run whose process dies is a row without figures, and is run again the next time", async () => {
    const one = (): Strut => new Strut(...tiny("dying"), "--methods", "lora", "--rates", "1e-2", "--seeds", "1", "--steps", "40", "--jobs", "1");
    const first = one();
    await first.until(/^1\/2 /m);
    for (let i = 0; i < 100 && running("dying").length === 0; i++) await new Promise((later) => setTimeout(later, 20));
    process.kill(running("dying")[0]!, "SIGKILL");
    const { code, out, err } = await first.ended;
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(/^lora +– .*its process was ended by SIGKILL$/m);
    expect((await one().ended).out).toMatch(/^lora +r = 2 +0\.01 +\d/m);
  });

  it("Ctrl-C ends its processes and says how to go on", async () => {
    const stopped = new Strut(...tiny("stopped"));
    await stopped.until(/^1\/7 /m);
    const began = performance.now();
    stopped.child.kill("SIGINT");
    const { code, out, err } = await stopped.ended;
    expect(performance.now() - began).toBeLessThan(2000);
    expect([code, err]).toEqual([130, ""]);
    expect(out).toMatch(/Stopped; what is finished is kept\. To go on: strut compare .*\n$/);
    await untilNoneRun("stopped");
    expect(await names(to("stopped"))).not.toContain("result.json");
  });

  it("goes on with more methods and seeds, and refuses another setup", async () => {
    await finished();
    const more = await new Strut(...tiny("whole"), "--methods", "rslora:r=2,lora", "--rates", "1e-2", "--json").ended;
    expect([more.code, more.err]).toEqual([0, ""]);
    const { rows } = JSON.parse(more.out) as Record<string, any>;
    expect(rows.map(({ label }: { label: string }) => label).toSorted()).toEqual(["lora", "rslora:r=2"]);
    expectSentence(
      await strut(...tiny("whole"), "--steps", "7"),
      /whole holds a comparison with another setup: recipe\.training\.steps was 6, now it is 7\.\n {7}Choose another folder/,
    );
    await writeFile(to("other.txt"), `${await readFile(to("text.txt"), "utf8")} `);
    expectSentence(await strut(...tiny("whole"), "--data", to("other.txt")), /recipe\.data\.text was/);
  });

  it("a method whose runs all fail, or that does not fit, says so in its row and stops nobody else; failed runs are tried again", async () => {
    const failing = ["--methods", "lora:alpha=1e30,rslora:alpha=1e30,dora", "--budget", "1200", "--rates", "1e-2", "--seeds", "1"];
    const { code, out, err } = await new Strut(...tiny("failing"), ...failing).ended;
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(/^dora: even r = 1 stores 1,600 parameters, more than the budget of 1,200: a budget of 1,600 would take it$/m);
    expect(out).toMatch(/^lora:alpha=1e30 +– .*(loss|gradient|norm)/m);
    expect(out).toMatch(/^dora +– .* even r = 1 stores/m);
    expect(await readFile(join(to("failing"), "index.html"), "utf8")).not.toMatch(/<svg|<figure|undefined/);
    expect(await names(to("failing"))).not.toContain("pareto.svg");
    // they may have failed of a mistake that is mended since
    const runs = /^\d\/3 {2}(lora|rslora):alpha=1e30, .*(loss|gradient|norm)/gm;
    expect(out.match(runs)).toHaveLength(2);
    expect((await new Strut(...tiny("failing"), ...failing).ended).out.match(runs)).toHaveLength(2);
  });
});

function expectSentence({ code, out, err }: Ran, about: RegExp): void {
  expect({ code, out }).toEqual({ code: 1, out: "" });
  expect(err).toMatch(about);
  expect(err).toMatch(/^strut: \S/);
  expect(err).not.toMatch(/\n\s+at |undefined|\[object|something unexpected|Error:/);
}

describe("a comparison that cannot be", () => {
  it.each([
    ["of an unknown method", ["--methods", "lorra"], /there is no adapter "lorra"\.\n {7}Did you mean lora\?/],
    ["of an optimiser", ["--methods", "adamw"], /adamw is one of optimizers, not an adapter/],
    [
      "on a budget that is too small for all",
      ["--budget", "10"],
      /no method can take part: lora: even r = 1 stores 1,120 parameters, more than the budget of 10: a budget of 1,120 would take it; dora: /,
    ],
    ["on two budgets", ["--budget-bytes", "80k"], /both --budget and --budget-bytes are given/],
    ["on modules that are not there", ["--targets", "w_proj"], /no method can take part: lora: .*w_proj/],
    ["of a text that is not there", ["--data", "nowhere.txt"], /There is no file or folder nowhere\.txt/],
    ["of a model that is not there", ["--model", "nowhere"], /nowhere/],
    ["on windows that do not fit", ["--window", "4096"], /window is 4096, more than the model's context of 512/],
    ["on a text that is too short", ["--batch-size", "2000"], /one batch of 2000 windows of 32 needs 64000/],
  ])("%s ends in a sentence", async (_, options, about) => {
    expectSentence(await strut(...tiny("refused"), ...options), about);
    expect(await names(to("refused"))).toEqual([]);
  });

  it.each([
    ["--rates", "fast"],
    ["--rates", "0"],
    ["--seeds", "0"],
    ["--held-out", "1"],
    ["--jobs", "1.5"],
    ["--budget-bytes", "some"],
  ])("%s %s is a mistake of the command line", async (...given) => {
    const { code, out, err } = await strut(...tiny("refused"), ...given);
    expect([code, out]).toEqual([2, ""]);
    expect(err).toMatch(/^strut: option '.*' argument '.*' is invalid\. /);
  });
});
