import { describe, expect, it } from "vitest";
import { z } from "zod";
import { parseOptions, snake } from "./options.ts";

const method = {
  id: "sample",
  family: "adapters",
  title: "Sample",
  paper: "none",
  options: z.object({
    r: z.int().positive().default(8).describe("rank; defaults to 8"),
    alpha: z.number().default(4).describe("scale; defaults to 4"),
    initR: z.int().default(12).describe("first rank; defaults to 12"),
    mode: z.enum(["bat", "mini"]).optional().describe("bat or mini"),
  }),
};
const aliases = { alpha: "lora_alpha" };
const parse = (given: Record<string, unknown>) => parseOptions(method, given, aliases);

describe("options of a method", () => {
  it("are its defaults where nothing is given, or undefined is", () => {
    expect(parse({})).toEqual({ r: 8, alpha: 4, initR: 12 });
    expect(parse({ r: undefined, mode: undefined })).toEqual({ r: 8, alpha: 4, initR: 12 });
  });

  it("are read in our spelling, in snake case, and by the names PEFT has for them", () => {
    for (const given of [
      { alpha: 2, initR: 3 },
      { alpha: 2, init_r: 3 },
      { lora_alpha: 2, init_r: 3 },
    ])
      expect(parse(given)).toEqual({ r: 8, alpha: 2, initR: 3 });
    expect(snake("initLoraWeights")).toBe("init_lora_weights");
  });

  it.each([
    [{ lora_alpha: 1, alpha: 2 }, "sample: option alpha is given twice, as alpha too"],
    [{ init_r: 1, initR: 1 }, "sample: option initR is given twice, as initR too"],
    [{ alhpa: 1 }, "sample has no option alhpa"],
    [{ r: 0 }, "sample: r is 0: "],
    [{ r: 1.5 }, "sample: r is 1.5: "],
    [{ mode: "batt" }, 'sample: mode is "batt": '],
    [{ constructor: 1 }, "sample has no option constructor"],
  ])("that are wrong end in a sentence: %o", (given, message) => {
    expect(() => parse(given)).toThrow(expect.objectContaining({ name: "StrutError", code: "option", message: expect.stringContaining(message) }));
  });

  it("that are unknown come with the nearest name, or with all names", () => {
    expect(() => parse({ alhpa: 1 })).toThrow(expect.objectContaining({ hint: "Did you mean alpha?" }));
    expect(() => parse({ somethingElse: 1 })).toThrow(expect.objectContaining({ hint: "Its options are r, alpha, initR, mode." }));
    expect(() => parse({ r: -1 })).toThrow(expect.objectContaining({ path: "r", hint: "r: rank; defaults to 8." }));
  });
});
