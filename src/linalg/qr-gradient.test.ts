import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { start, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { qr, qrBackward } from "./index.ts";

beforeAll(async () => {
  await start();
});

const numbers = async (x: Tensor): Promise<number[]> => Array.from((await x.data()) as Float64Array);

/** Compares with central differences of a random projection of Q and R. */
async function check(m: number, n: number, use: { Q: boolean; R: boolean }): Promise<void> {
  const k = Math.min(m, n);
  const values = sample([m, n], 3).map((x, at) => x + (at % (n + 1) === 0 ? 2 : 0));
  const [gQ, gR] = [sample([m, k], 4), sample([k, n], 5)];
  const of = async (entries: number[]): Promise<number> => {
    const { Q, R } = await qr(tensor(entries, [m, n], "f64"));
    const dot = async (x: Tensor, g: number[]): Promise<number> => (await numbers(x)).reduce((sum, value, i) => sum + value * g[i]!, 0);
    return (use.Q ? await dot(Q, gQ) : 0) + (use.R ? await dot(R, gR) : 0);
  };
  const factors = await qr(tensor(values, [m, n], "f64"));
  const gradient = await numbers(qrBackward(factors, use.Q ? tensor(gQ, [m, k], "f64") : null, use.R ? tensor(gR, [k, n], "f64") : null));
  for (let i = 0; i < values.length; i++) {
    const moved = (by: number): Promise<number> => of(values.with(i, values[i]! + by));
    const numeric = ((await moved(1e-5)) - (await moved(-1e-5))) / 2e-5;
    expect(Math.abs(gradient[i]! - numeric), `entry ${i}: analytic ${gradient[i]}, numeric ${numeric}`).toBeLessThan(1e-7 * Math.max(1, Math.abs(numeric)));
  }
}

describe("qrBackward", () => {
  it.each([
    [4, 4],
    [6, 3],
    [3, 6],
    [5, 1],
    [1, 5],
  ])("agrees with finite differences for %i×%i", async (m, n) => {
    await check(m, n, { Q: true, R: true });
    await check(m, n, { Q: true, R: false });
    await check(m, n, { Q: false, R: true });
  });

  it("says that a rank-deficient matrix has no gradient, and that it wants the reduced factors", async () => {
    const factors = await qr(tensor([1, 0, 2, 0], [2, 2], "f64"));
    expect(() => qrBackward(factors, factors.Q, null)).toThrow(/pivot 1 is 0/);
    const complete = await qr(tensor([1, 0, 2, 1, 1, 1], [3, 2], "f64"), { mode: "complete" });
    expect(() => qrBackward(complete, zeros([3, 3], "f64"), null)).toThrow(/mode "reduced"/);
  });
});
