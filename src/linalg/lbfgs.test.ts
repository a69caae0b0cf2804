import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { start, tensor, type Tensor } from "../tensor/index.ts";
import { lbfgs, type Objective } from "./index.ts";

beforeAll(async () => {
  await start();
});

const numbers = async (x: Tensor): Promise<Float64Array> => Float64Array.from((await x.data()) as Float64Array);

/** An objective on plain numbers. */
const plainly =
  (f: (x: Float64Array) => { value: number; gradient: ArrayLike<number> }): Objective =>
  async (x) => {
    const { value, gradient } = f(await numbers(x));
    return { value, gradient: tensor(gradient, x.shape, "f64") };
  };

/** Σ 100·(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)², least at 1, 1, … */
const rosenbrock = plainly((x) => {
  const gradient = new Float64Array(x.length);
  let value = 0;
  for (let i = 0; i + 1 < x.length; i++) {
    const [bend, off] = [x[i + 1]! - x[i]! ** 2, 1 - x[i]!];
    value += 100 * bend ** 2 + off ** 2;
    gradient[i]! += -400 * x[i]! * bend - 2 * off;
    gradient[i + 1]! += 200 * bend;
  }
  return { value, gradient };
});

describe("lbfgs", () => {
  it.each([
    [[-1.2, 1], 80],
    [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 150],
  ])("walks Rosenbrock's valley from %j to 1, 1, … within %i evaluations", async (x0, most) => {
    const found = await lbfgs(rosenbrock, tensor(x0, [x0.length], "f64"), { tolerance: 1e-9 });
    expect(found.converged).toBe(true);
    for (const value of await numbers(found.x)) expect(value).toBeCloseTo(1, 8);
    expect(found.evaluations).toBeLessThan(most);
  });

  it("fits a logistic regression with an L2 penalty as scipy does", async () => {
    const [n, d, penalty] = [40, 5, 0.1];
    const x = Array.from({ length: n }, (_, i) => Array.from({ length: d }, (_, j) => Math.sin(i * 1.7 + j * 2.9 + i * j * 0.31)));
    const target = x.map((row, i) => (Math.sin(i * 2.3) + row[0]! > 0 ? 1 : -1));
    const objective = plainly((w) => {
      let value = (penalty / 2) * w.reduce((sum, e) => sum + e * e, 0);
      const gradient = w.map((e) => penalty * e);
      x.forEach((row, i) => {
        const margin = target[i]! * row.reduce((sum, e, j) => sum + e * w[j]!, 0);
        value += Math.log1p(Math.exp(-margin)) / n;
        row.forEach((e, j) => (gradient[j]! -= (target[i]! * e) / (1 + Math.exp(margin)) / n));
      });
      return { value, gradient };
    });
    const found = await lbfgs(objective, tensor([0, 0, 0, 0, 0], [5], "f64"), { tolerance: 1e-11 });
    // scipy 1.17, optimize.root on the gradient.
    const golden = [1.0288479379241176, -0.05165458176810891, 0.8648729213688231, -0.05692153178263678, -0.19285901676065742];
    expect(found.converged).toBe(true);
    (await numbers(found.x)).forEach((value, i) => expect(value).toBeCloseTo(golden[i]!, 9));
    expect(found.value).toBeCloseTo(0.5108058537685818, 13);
  });

  it("minimises a badly scaled quadratic in fewer evaluations with a longer history", async () => {
    const scales = Array.from({ length: 8 }, (_, i) => 10 ** (i - 4));
    const objective = plainly((x) => ({ value: x.reduce((sum, e, i) => sum + (scales[i]! / 2) * e * e, 0), gradient: x.map((e, i) => scales[i]! * e) }));
    const x0 = tensor(sample([8], 5), [8], "f64");
    const run = (history: number) => lbfgs(objective, x0, { history, tolerance: 1e-8, iterations: 5000 });
    const [long, short] = [await run(10), await run(1)];
    expect(long.converged).toBe(true);
    expect(short.evaluations).toBeGreaterThan(long.evaluations);
  });

  it("never goes up, and stops at the wanted number of steps", async () => {
    let before = Infinity;
    for (let iterations = 0; iterations < 12; iterations++) {
      const found = await lbfgs(rosenbrock, tensor([-1.2, 1], [2], "f64"), { iterations });
      expect(found.iterations).toBe(iterations);
      expect(found.value).toBeLessThan(before);
      before = found.value;
    }
  });

  it("steps back from where the objective is not finite", async () => {
    // x − log x, which is NaN left of 0, from where the first full step would land there.
    const found = await lbfgs(
      plainly(([x]) => ({ value: x! - Math.log(x!), gradient: [1 - 1 / x!] })),
      tensor([0.01], [1], "f64"),
    );
    expect((await numbers(found.x))[0]).toBeCloseTo(1, 5);
    const steep = await lbfgs(
      plainly(([x]) => ({ value: 5 * x! - Math.log(x!), gradient: [5 - 1 / x!] })),
      tensor([0.9], [1], "f64"),
    );
    expect((await numbers(steep.x))[0]).toBeCloseTo(0.2, 5);
  });

  it("says that it has not converged where rounding or a wrong gradient allows no step down", async () => {
    const wrong = await lbfgs(
      plainly(([x]) => ({ value: x! * x!, gradient: [-2 * x!] })),
      tensor([1], [1], "f64"),
    );
    expect(wrong).toMatchObject({ converged: false, iterations: 0 });
    expect((await numbers(wrong.x))[0]).toBe(1);
  });

  it("keeps shape and dtype of x0, and refuses what is not finite there and gradients of another shape", async () => {
    const objective = plainly((x) => ({ value: x.reduce((sum, e) => sum + (e - 2) ** 2, 0), gradient: x.map((e) => 2 * (e - 2)) }));
    const { x } = await lbfgs(objective, tensor([1, 2, 3, 4], [2, 2]));
    expect(x.dtype).toBe("f32");
    expect(x.shape).toEqual([2, 2]);
    for (const value of await numbers(x)) expect(value).toBeCloseTo(2, 6);
    await expect(lbfgs(objective, tensor([NaN]))).rejects.toThrow(/the objective is NaN at x0/);
    await expect(lbfgs(() => ({ value: 0, gradient: tensor([1, 2]) }), tensor([1]))).rejects.toThrow(/lbfgs: the gradient is f32\[2\]/);
  });
});
