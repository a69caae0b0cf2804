import { applyLinear, makeLayer, makeModel, type Architecture, type LayerSpec, type Model } from "../../src/models/index.ts";
import { mean, Parameter, relu, type Tensor } from "../../src/tensor/index.ts";

const conv = (path: string, shape: readonly number[], bias: boolean, groups = 1, stride = 1, padding = 0): LayerSpec => ({
  path,
  kind: "conv2d",
  shape,
  bias,
  depth: 0,
  conv: { kernel: [shape[2]!, shape[3]!], stride: [stride, stride], padding: [padding, padding], dilation: [1, 1], groups },
});

/** The network under the convolution cases of test/interop/peft: three convolutions, one of them grouped, a mean and a linear layer. */
const architecture: Architecture = {
  modelType: "cnn",
  head: "fc",
  parse: () => ({ width: 16, depth: 1 }),
  layers: () => [
    conv("conv1", [8, 3, 3, 3], true, 1, 1, 1),
    conv("conv2", [12, 4, 3, 3], false, 2, 2, 1),
    conv("conv3", [16, 12, 1, 1], true),
    { path: "fc", kind: "linear", shape: [10, 16], bias: true, depth: 0 },
  ],
  check: () => {},
  forward: (model, x, run) =>
    mean(
      ["conv1", "conv2", "conv3"].reduce((h, path) => relu(applyLinear(model, path, h, run)), x),
      { axes: [2, 3] },
    ),
};

/** It, with the weights of a file by their names. */
export function cnn(weights: ReadonlyMap<string, Tensor>): Model {
  const leaf = (name: string): Parameter => new Parameter(weights.get(name)!, name, false);
  const layers = new Map(
    architecture
      .layers({ width: 16, depth: 1 })
      .map((spec) => [spec.path, makeLayer(spec, leaf(`${spec.path}.weight`), spec.bias ? leaf(`${spec.path}.bias`) : undefined)]),
  );
  return makeModel({ architecture, config: { model_type: "cnn" }, dimensions: { width: 16, depth: 1 }, layers });
}
