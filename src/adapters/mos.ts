import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Site } from "../nn/contracts.ts";
import { lowRank } from "../operators/index.ts";
import { embedding, reshape, Rng, tensor, transpose, zeros, type Tensor } from "../tensor/index.ts";
import { adapter, addAt, type InitContext } from "./adapter.ts";
import { dropInput, loraOptions } from "./lora.ts";

const options = z.object({
  r: z.int().positive().default(8).describe("rank that is built, from shards; defaults to 8"),
  validR: z.int().positive().default(2).describe("equivalent rank: a LoRA of this rank stores as much; defaults to 2"),
  privateR: z.int().nonnegative().default(0).describe("ranks of which each site has shards of its own; defaults to 0"),
  numChunkPerVec: z.int().positive().default(1).describe("shards that make up one row; must divide both sides of the matrices; defaults to 1"),
  alpha: z.number().default(16).describe("the update is scaled by alpha / r; defaults to 16"),
  dropout: loraOptions.shape.dropout.unwrap().default(0.1).describe("probability of zeroing an input of the update in training; defaults to 0.1"),
  balanced: z
    .boolean()
    .default(false)
    .describe("deal the public shards out by turns, so that every one is used, and all as often as each other or once more; defaults to false"),
  pairDissociation: z.boolean().default(true).describe("draw the shards of A and of B apart; defaults to true"),
});
type Options = z.output<typeof options>;
type Params = { indexA: Tensor; indexB: Tensor };
type Pools = Record<string, Tensor>;

/** Sites of one role and shape share a pool. */
const kindOf = ({ role, out, in: inner }: Site): string => `${role}_${out}x${inner}`;

function check(sites: readonly Site[], o: Options): void {
  for (const { path, out, in: inner } of sites)
    if (out % o.numChunkPerVec !== 0 || inner % o.numChunkPerVec !== 0)
      throw new StrutError("option", `numChunkPerVec ${o.numChunkPerVec} does not divide the ${out}×${inner} matrix of ${path}`, { path: "numChunkPerVec" });
  for (const kind of new Set(sites.map(kindOf))) {
    const blocks = sites.filter((site) => kindOf(site) === kind).length;
    if (o.privateR > o.validR || o.privateR > o.r || o.r - o.privateR > (o.validR - o.privateR) * blocks)
      throw new StrutError(
        "option",
        `mos: rank ${o.r} with ${o.privateR} private of ${o.validR} cannot be built from the pool of ${blocks} sites: (r − private) may be at most (valid − private)·${blocks}`,
        { path: "r", hint: "Lower r or privateR, or raise validR." },
      );
  }
}

/** Cards of shuffled decks, one deck after the other, to so many hands; no hand gets a card twice. */
function deal(hands: number, each: number, cards: number, shuffled: (deck: number) => number[]): number[][] {
  let [deck, decks]: [number[], number] = [[], 0];
  return Array.from({ length: hands }, () => {
    const hand = deck.splice(0, each);
    if (hand.length === each) return hand;
    const next = shuffled(decks++);
    const free = next.filter((card) => !hand.includes(card)).slice(0, each - hand.length);
    deck = next.filter((card) => !free.includes(card));
    return [...hand, ...free];
  });
}

/** Which shards a site takes for A or for B: some of the public ones, and all of its own. */
function shards(site: Site, name: "A" | "B", o: Options, { rng, sites }: InitContext): Tensor {
  const peers = sites.filter((other) => kindOf(other) === kindOf(site));
  const [blocks, own, l] = [peers.length, peers.findIndex(({ path }) => path === site.path), o.numChunkPerVec];
  const open = (o.validR - o.privateR) * blocks * l;
  const taken = (o.r - o.privateR) * l;
  // dealt alike whatever the seed: the shards themselves are drawn
  const dealer = new Rng(0).fork(`mos/${kindOf(site)}/${name}`);
  const drawn = o.balanced
    ? deal(blocks, taken, open, (deck) => Array.from(dealer.fork(`${deck}`).permutation(open)))[own]!
    : Array.from(rng.fork(name).permutation(open)).slice(0, taken);
  const kept = Array.from({ length: o.privateR * l }, (_, i) => open + own * o.privateR * l + i);
  return tensor([...drawn, ...kept], [o.r * l], "i32");
}

function updateOf({ indexA, indexB }: Params, site: Site, o: Options, pools: Pools): ReturnType<typeof lowRank> {
  const A = reshape(embedding(pools[`${kindOf(site)}.pool_A`]!, indexA), [o.r, site.in]);
  const B = transpose(reshape(embedding(pools[`${kindOf(site)}.pool_B`]!, indexB), [o.r, site.out]));
  return lowRank(B, A, o.alpha / o.r);
}

/**
 * MoS: ΔW = (α/r)·B·A, the rows of A and columns of B put together from shards of pools that all sites of a role share.
 * Wang et al. 2025, arXiv:2410.00938. The indices are drawn once and are part of the adapter.
 *
 * @example
 * const tuned = await adapt(model, mos, { r: 4, validR: 1, numChunkPerVec: 4 }, { targets: ["q_proj", "v_proj"] });
 */
export const mos = adapter({
  id: "mos",
  title: "MoS",
  paper: "arXiv:2410.00938",
  kinds: ["linear"],
  options,
  size: "validR",
  waives: [
    {
      law: "a site's values do not depend on other sites",
      because: 'mos.md: "One pool pair **per linear kind** (q,k,v,o,gate,up,down), shared by all L blocks"',
    },
  ],
  shared(sites, o, { rng, dtype }): Pools {
    check(sites, o);
    const l = o.numChunkPerVec;
    return Object.fromEntries(
      [...new Map(sites.map((site) => [kindOf(site), site]))].flatMap(([kind, { out, in: inner }]) => {
        const rows = o.validR * l * sites.filter((site) => kindOf(site) === kind).length;
        return [
          [`${kind}.pool_A`, rng.fork(kind).uniform([rows, inner / l], 1 / Math.sqrt(inner), dtype)],
          [`${kind}.pool_B`, zeros([rows, out / l], dtype)],
        ];
      }),
    );
  },
  init: (site, o, context): Params => ({
    indexA: shards(site, "A", o, context),
    indexB: shards(site, o.pairDissociation ? "B" : "A", o, context),
  }),
  update: (p: Params, site, o, _live, shared) => updateOf(p, site, o, shared),
  forward: (x, y, p, site, o, live, shared) => addAt(site, updateOf(p, site, o, shared), y, dropInput(x, o, site, live)),
  layout: { tensors: { linear: { indexA: "index_A", indexB: "index_B" } }, sharedPrefix: "mos." },
});
