import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf } from "../../test/support/gradients.ts";
import { conv2d, reshape, start, type Tensor } from "../tensor/index.ts";
import { convolve, dense, lowRank, scaledRows, type ConvGeometry } from "./index.ts";

beforeAll(() => start());

const numbers = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number);
const close = async (found: Tensor, expected: Tensor): Promise<void> => {
  expect(found.shape).toEqual(expected.shape);
  const [a, b] = [await numbers(found), await numbers(expected)];
  a.forEach((value, i) => expect(Math.abs(value - b[i]!)).toBeLessThan(1e-12));
};

const geometry: ConvGeometry = { kernel: [3, 2], stride: [2, 1], padding: [1, 1], dilation: [1, 2], groups: 1 };

describe("convolution by an operator", () => {
  it("is conv2d where the operator is dense, also of a filter of four axes", async () => {
    const [w, x, bias] = [leaf([4, 18]), leaf([2, 3, 6, 5], 2), leaf([4], 3)];
    const expected = conv2d(x, reshape(w, [4, 3, 3, 2]), bias, geometry);
    await close(convolve(dense(w), x, geometry, bias), expected);
    await close(convolve(dense(reshape(w, [4, 3, 3, 2])), x, geometry, bias), expected);
  });

  it("is a convolution by A and a 1×1 convolution by B where it is low-rank", async () => {
    const [b, a, x, bias] = [leaf([4, 2]), leaf([2, 18], 2), leaf([2, 3, 6, 5], 3), leaf([4], 4)];
    const inner = conv2d(x, reshape(a, [2, 3, 3, 2]), null, geometry);
    await close(convolve(lowRank(b, a), x, geometry, bias), conv2d(inner, reshape(b, [4, 2, 1, 1]), bias));
  });

  it("is conv2d by the dense matrix for nested operators and for groups", async () => {
    const grouped = { ...geometry, groups: 2 };
    const [d, b, a, x] = [leaf([4]), leaf([4, 2], 2), leaf([2, 12], 3), leaf([2, 4, 6, 5], 4)];
    const [twoGroups, x2] = [scaledRows(d, lowRank(b, a)), leaf([2, 2, 6, 5], 5)];
    await close(convolve(twoGroups, x, grouped), conv2d(x, reshape(twoGroups.toDense(), [4, 2, 3, 2]), null, grouped));
    await close(convolve(twoGroups, x2, geometry), conv2d(x2, reshape(twoGroups.toDense(), [4, 2, 3, 2]), null, geometry));
  });

  it("has gradients in the image and in every part", async () => {
    await checkGradients(
      (x, b, a, bias) => convolve(lowRank(b!, a!), x!, geometry, bias!),
      [leaf([1, 2, 4, 4]), leaf([3, 2], 2), leaf([2, 12], 3), leaf([3], 4)],
    );
    await checkGradients((x, w) => convolve(dense(w!), x!, geometry), [leaf([1, 2, 4, 4]), leaf([3, 12], 2)]);
  });
});
