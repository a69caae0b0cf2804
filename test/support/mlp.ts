import { applyLinear, makeLayer, makeModel, type Architecture, type LayerSpec, type Model } from "../../src/models/index.ts";
import { copyOf, Parameter, relu, transpose, type Tensor } from "../../src/tensor/index.ts";

/** A perceptron of linear layers `fc0`, `fc1` … with biases, relu between them; all of it trains. `transposed` keeps its weights in×out. */
export function mlp(widths: readonly number[], draw: (name: string, shape: readonly number[]) => Tensor, transposed = false): Model {
  const specs = widths.slice(1).map((out, i): LayerSpec => ({ path: `fc${i}`, kind: "linear", shape: [out, widths[i]!], bias: true, depth: i, transposed }));
  const dimensions = { width: widths.at(-2)!, depth: specs.length };
  const head = specs.at(-1)!.path;
  const architecture: Architecture = {
    modelType: "mlp",
    head,
    parse: () => dimensions,
    layers: () => specs,
    check: () => {},
    forward: (model, x, run) => specs.reduce((h, { path }) => (path === head ? h : relu(applyLinear(model, path, h, run))), x),
  };
  const leaf = (name: string, shape: readonly number[], turned = false): Parameter =>
    new Parameter(turned ? copyOf(transpose(draw(name, shape))) : draw(name, shape), name);
  const layers = new Map(
    specs.map((spec) => [spec.path, makeLayer(spec, leaf(`${spec.path}.weight`, spec.shape, transposed), leaf(`${spec.path}.bias`, [spec.shape[0]!]))]),
  );
  return makeModel({ architecture, config: { model_type: "mlp" }, dimensions, layers });
}
