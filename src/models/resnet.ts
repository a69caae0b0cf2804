import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import { adaptiveAveragePool2d, add, concat, relu, reshape, slice, zeros, type Tensor } from "../tensor/index.ts";
import { block } from "./blocks.ts";
import { parseConfig } from "./config.ts";
import { applyBatchNorm, applyLinear, type Architecture, type Dimensions, type LayerSpec } from "./model.ts";

const schema = z.object({
  blocks_per_stage: z.array(z.int().positive()).min(1),
  widths: z.array(z.int().positive()).min(1),
  shortcut: z.string().regex(/^A\b/, "only option A (subsampling and zero channels) is known").default("A"),
  num_labels: z.int().positive(),
  num_channels: z.int().positive().default(3),
  batch_norm_eps: z.number().positive().default(1e-5),
});

interface ResnetDimensions extends Dimensions {
  readonly stages: readonly { readonly blocks: number; readonly width: number }[];
  readonly channels: number;
  readonly labels: number;
  readonly eps: number;
}

interface Block {
  readonly path: string;
  readonly in: number;
  readonly out: number;
  readonly stride: number;
}

/** Every block; the first of each later stage halves the image. */
function blocksOf({ stages }: ResnetDimensions): Block[] {
  let inner = stages[0]!.width;
  return stages.flatMap(({ blocks, width }, stage) =>
    Array.from({ length: blocks }, (_, i): Block => {
      const made = { path: `layer${stage + 1}.${i}`, in: inner, out: width, stride: i === 0 && stage > 0 ? 2 : 1 };
      inner = width;
      return made;
    }),
  );
}

/** Option A: every second pixel, and as many zero channels before as behind. */
function shortcut(x: Tensor, { in: inner, out, stride }: Block): Tensor {
  if (stride === 1 && inner === out) return x;
  const [batch, , height, width] = x.shape as [number, number, number, number];
  const halves = [Math.ceil(height / stride), Math.ceil(width / stride)] as const;
  const thin = subsample(subsample(x, 2, stride), 3, stride);
  const side = Math.floor((out - inner) / 2);
  const pad = (channels: number): Tensor => zeros([batch, channels, ...halves], x.dtype as "f32" | "f64");
  return concat([pad(side), thin, pad(out - inner - side)], 1);
}

/** Every `step`-th slice along an axis whose extent the step divides. */
function subsample(x: Tensor, axis: number, step: number): Tensor {
  if (step === 1) return x;
  const extent = x.shape[axis]!;
  if (extent % step !== 0) throw new StrutError("shape", `images of [${x.shape.slice(2)}] pixels cannot be halved; their sides must be multiples of 4`);
  const [before, after] = [x.shape.slice(0, axis), x.shape.slice(axis + 1)];
  return reshape(slice(reshape(x, [...before, extent / step, step, ...after]), axis + 1, 0, 1), [...before, extent / step, ...after]);
}

/**
 * ResNet for small images: one 3×3 convolution, stages of two-convolution blocks with parameter-free shortcuts, mean over pixels.
 * With 3, 5, 7, 9 or 18 blocks a stage it is ResNet-20, 32, 44, 56 or 110. He et al. 2016, arXiv:1512.03385, section 4.2.
 */
export const resnet: Architecture = {
  modelType: "resnet-cifar",
  head: "linear",
  ignored: /num_batches_tracked$/,

  parse(config: Config): ResnetDimensions {
    const c = parseConfig(schema, config, "resnet-cifar");
    if (c.blocks_per_stage.length !== c.widths.length || c.widths.some((width, i) => width < (c.widths[i - 1] ?? 0)))
      throw new StrutError("config", `config.json: widths [${c.widths}] must not fall and must be as many as blocks_per_stage [${c.blocks_per_stage}]`, {
        path: "widths",
      });
    return {
      width: c.widths.at(-1)!,
      depth: c.blocks_per_stage.reduce((a, b) => a + b, 0),
      stages: c.blocks_per_stage.map((blocks, i) => ({ blocks, width: c.widths[i]! })),
      channels: c.num_channels,
      labels: c.num_labels,
      eps: c.batch_norm_eps,
    };
  },

  layers(dimensions): LayerSpec[] {
    const d = dimensions as ResnetDimensions;
    const conv = (path: string, inner: number, out: number, stride: number, depth: number): LayerSpec => ({
      path,
      kind: "conv2d",
      shape: [out, inner, 3, 3],
      bias: false,
      depth,
      conv: { kernel: [3, 3], stride: [stride, stride], padding: [1, 1], dilation: [1, 1], groups: 1 },
    });
    const norm = (path: string, n: number, depth: number): LayerSpec => ({
      path,
      kind: "norm",
      shape: [n],
      bias: true,
      depth,
      buffers: { running_mean: 0, running_var: 1 },
    });
    const first = d.stages[0]!.width;
    return [
      conv("conv1", d.channels, first, 1, 0),
      norm("bn1", first, 0),
      ...blocksOf(d).flatMap(({ path, in: inner, out, stride }, i) => [
        conv(`${path}.conv1`, inner, out, stride, i),
        norm(`${path}.bn1`, out, i),
        conv(`${path}.conv2`, out, out, 1, i),
        norm(`${path}.bn2`, out, i),
      ]),
      { path: "linear", kind: "linear", shape: [d.labels, d.width], bias: true, depth: d.depth },
    ];
  },

  check(dimensions, images) {
    const { channels } = dimensions as ResnetDimensions;
    if (images.shape.length !== 4 || images.shape[1] !== channels)
      throw new StrutError("shape", `images must be [batch, ${channels}, height, width], got ${images.dtype}[${images.shape}]`);
  },

  forward(model, images, run) {
    const d = model.dimensions as ResnetDimensions;
    const step = (name: string, x: Tensor, convolution: string, norm: string): Tensor =>
      applyBatchNorm(model, `${name}${norm}`, applyLinear(model, `${name}${convolution}`, x, run), run, d.eps);
    let x = relu(step("", images, "conv1", "bn1"));
    blocksOf(d).forEach((one, i) => {
      x = block(run, i, x, (input) => {
        const inner = relu(step(`${one.path}.`, input, "conv1", "bn1"));
        return relu(add(step(`${one.path}.`, inner, "conv2", "bn2"), shortcut(input, one)));
      });
    });
    run.observer?.hidden?.(d.depth, x);
    return reshape(adaptiveAveragePool2d(x, 1), [images.shape[0]!, d.width]);
  },
};
