import { expect } from "vitest";
import { backward, mul, noGrad, Parameter, Rng, scope, sum, tensor, type Tensor } from "../../src/tensor/index.ts";

/** Values away from zero in a fixed pattern, for inputs of gradient checks. */
export function sample(shape: readonly number[], seed = 1, scale = 1): number[] {
  const rng = new Rng(seed);
  return Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => scale * (rng.random() * 2 - 1));
}

/** A parameter with sampled values in f64. */
export const leaf = (shape: readonly number[], seed = 1, scale = 1): Parameter =>
  new Parameter(tensor(sample(shape, seed, scale), shape, "f64"), `leaf${seed}`);

/**
 * Compares backward() with central differences in f64, for a random projection of the output.
 * Every element of every input is moved, one at a time.
 */
export async function checkGradients(f: (...inputs: Parameter[]) => Tensor, inputs: Parameter[], { tolerance = 1e-6, step = 1e-5 } = {}): Promise<void> {
  const shape = noGrad(() => f(...inputs)).shape;
  const weights = tensor(sample(shape, 99), shape, "f64");
  const value = (): Promise<number> => noGrad(() => sum(mul(f(...inputs), weights))).item();
  const gradients = backward(sum(mul(f(...inputs), weights)));
  for (const input of inputs) {
    const analytic = [...((await gradients.get(input)?.data()) ?? new Float64Array(input.size))].map(Number);
    const start = [...(await input.data())].map(Number);
    for (let i = 0; i < start.length; i++) {
      const moved = async (by: number): Promise<number> => {
        const values = start.slice();
        values[i]! += by;
        input.assign(scope(() => tensor(values, input.shape, "f64")));
        return value();
      };
      const numeric = ((await moved(step)) - (await moved(-step))) / (2 * step);
      input.assign(tensor(start, input.shape, "f64"));
      const error = Math.abs(numeric - analytic[i]!);
      expect(error, `${input.name}[${i}]: analytic ${analytic[i]}, numeric ${numeric}`).toBeLessThan(tolerance * Math.max(1, Math.abs(numeric)));
    }
  }
}
