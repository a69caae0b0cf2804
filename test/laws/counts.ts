import type { Site } from "../../src/nn/contracts.ts";

type Shape = Pick<Site, "out" | "in" | "kind">;
// oxlint-disable-next-line typescript/no-explicit-any -- each method's own options
type Options = Record<string, any>;

/** What a method's sheet says of its size, and small options to try its laws with. */
export interface Sheet {
  /** The sheet, and the words in it that give the formula. */
  readonly says: string;
  /** Trainable numbers of one site. */
  count(site: Shape, o: Options): number;
  /** Trainable numbers of what sites share. */
  shared?(sites: readonly Shape[], o: Options): number;
  /** The option that is a rank, if one is. */
  readonly rank?: string;
  /** Options that fit tiny sites; the first runs on every scaffold, all run on the first. */
  readonly variants: readonly Options[];
  /** Totals the sheet prints: [out, in, how many] of the sites. */
  readonly totals?: readonly {
    readonly says: string;
    readonly options: Options;
    readonly sites: readonly (readonly [number, number, number])[];
    readonly total: number;
  }[];
}

const llama3B = [
  [3072, 3072, 28],
  [1024, 3072, 28],
] as const;

const lora = (o: Options, { out, in: inner, kind }: Shape): number => o["r"] * (inner + out) + (o["loraBias"] && kind === "linear" ? out : 0);

/** One entry a method of the catalog, by id. */
export const sheets: Readonly<Record<string, Sheet>> = {
  lora: {
    says: '_lora-baselines.md: "r(in+out)"',
    count: (site, o) => lora(o, site),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.4 },
      { r: 1, initLoraWeights: "gaussian" },
      { r: 2, loraBias: true },
    ],
    totals: [
      {
        says: '_lora-baselines.md: "Llama-3.2-3B q_proj 3072→3072 & v_proj 3072→1024, 28 layers: LoRA r32 9,175,040"',
        options: { r: 32 },
        sites: llama3B,
        total: 9_175_040,
      },
    ],
  },
  rslora: {
    says: '_lora-baselines.md: "same"',
    count: (site, o) => lora(o, site),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 4, dropout: 0.4 },
    ],
  },
  dora: {
    says: '_lora-baselines.md: "r(in+out)+out"',
    count: (site, o) => lora(o, site) + site.out,
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.4 },
      { r: 2, useRslora: true },
      { r: 2, loraBias: true },
    ],
    totals: [{ says: '_lora-baselines.md: "DoRA r32 9,289,728"', options: { r: 32 }, sites: llama3B, total: 9_289_728 }],
  },
};
