import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Site } from "../nn/contracts.ts";
import { dense, lowRank, type LinearOperator } from "../operators/index.ts";
import { add, concat, matmul, reshape, sub, sum, tensor, transpose, zeros, type Real, type Tensor } from "../tensor/index.ts";
import { adapter, type InitContext } from "./adapter.ts";
import { kaiming } from "./loha.ts";
import { dropInput } from "./lora.ts";

const options = z.object({
  r: z.int().positive().default(64).describe("extent of a shard; inputs i with the same i mod r share it; defaults to 64"),
  missDropout: z.number().min(0).lt(1).default(0).describe("probability of zeroing an input of the update in training, bat has none; defaults to 0"),
  miniR: z.int().positive().default(1).describe('columns of the block with initWeights "mini", repeated along the output; defaults to 1'),
  initWeights: z
    .union([z.boolean(), z.enum(["bat", "mini"])])
    .default(true)
    .describe("true: one shared block, zero; bat: W·(I + b) + b by blocks; mini: a narrower block, repeated; false: as true but at random; defaults to true"),
});
type Options = z.output<typeof options>;
/** D r×out (mini: r×miniR), or of bat b out/r×r×r. */
type Params = { block: Tensor };

const isBat = ({ block }: Params): boolean => block.shape.length === 3;

function divides(what: string, extent: number, by: number, site: Site, path: string): void {
  if (extent % by !== 0)
    throw new StrutError("option", `${path} ${by} does not divide the ${extent} ${what} of ${site.path}`, { path, hint: `Use a divisor of ${extent}.` });
}

function init(site: Site, o: Options, context: InitContext): Params {
  const { dtype } = context;
  if (o.initWeights === "bat") {
    divides("inputs", site.in, o.r, site, "r");
    divides("outputs", site.out, o.r, site, "r");
    return { block: zeros([site.out / o.r, o.r, o.r], dtype) };
  }
  if (o.initWeights === "mini") divides("outputs", site.out, o.miniR, site, "miniR");
  const shape = [o.r, o.initWeights === "mini" ? o.miniR : site.out];
  return { block: o.initWeights === false ? kaiming(context.rng, shape, dtype) : zeros(shape, dtype) };
}

/** D r×out; a narrower one is repeated. */
const wide = ({ block }: Params, { out }: Site): Tensor => (block.shape[1] === out ? block : concat(Array(out / block.shape[1]!).fill(block) as Tensor[], 1));

/** The r×in matrix with a 1 where i mod r is the row. */
function shards(r: number, inner: number, dtype: Real): Tensor {
  const values = new Float32Array(r * inner);
  for (let i = 0; i < inner; i++) values[(i % r) * inner + i] = 1;
  return tensor(values, [r, inner], dtype);
}

/** x padded to whole shards. */
function padded(x: Tensor, r: number): Tensor {
  const missing = (r - (x.shape.at(-1)! % r)) % r;
  return missing === 0 ? x : concat([x, zeros([...x.shape.slice(0, -1), missing], x.dtype)], -1);
}

/** W·(I + b_j) + b_j for every r×r block of the row of blocks j. */
function affineBlocks(W: Tensor, b: Tensor): Tensor {
  const [rows, r] = b.shape as [number, number, number];
  const cols = W.shape[1]! / r;
  const blocks = reshape(W, [rows, r * cols, r]);
  const moved = reshape(add(blocks, matmul(blocks, b)), [rows, r, cols, r]);
  return reshape(add(moved, reshape(b, [rows, r, 1, r])), W.shape);
}

/**
 * Bone, now MiSS: ΔW[o, i] = D[i mod r, o], one block for all shards of the input; or, as first published, W·(I + b) + b by blocks ("bat").
 * Kang & Yin 2024, arXiv:2409.15371. It has no scale; it starts at zero. Beside other adapters a bat is that of the base alone; PEFT chains them.
 *
 * @example
 * const tuned = await adapt(model, bone, { r: 16 });
 */
export const bone = adapter({
  id: "bone",
  title: "Bone / MiSS",
  paper: "arXiv:2409.15371",
  kinds: ["linear"],
  options,
  init,
  update(p: Params, site): LinearOperator {
    if (!isBat(p)) return lowRank(transpose(wide(p, site)), shards(p.block.shape[0]!, site.in, p.block.dtype as Real));
    return dense(sub(affineBlocks(site.weight.toDense(), p.block), site.weight.toDense()));
  },
  forward(x, y, p, site, o, live) {
    if (isBat(p)) {
      const moved = dense(affineBlocks(site.weight.toDense(), p.block));
      return site.bias ? add(moved.apply(x), site.bias) : moved.apply(x);
    }
    const r = p.block.shape[0]!;
    const whole = padded(x, r);
    const input = dropInput(whole, { dropout: o.missDropout }, site, live);
    const folded = sum(reshape(input, [...x.shape.slice(0, -1), input.shape.at(-1)! / r, r]), { axes: [x.shape.length - 1] });
    return add(y, matmul(folded, wide(p, site)));
  },
  layout: { type: "MISS", formerly: { BONE: { block: "bone_block" } }, tensors: { linear: { block: "miss_block" } } },
});
