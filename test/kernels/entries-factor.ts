import type { Allowed, Draw, Entry } from "./draw.ts";

const list = (n: number, value: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => value(i));
const size = (n: number, stride: number, inner: number): number => (n === 0 || inner === 0 ? 0 : (n - 1) * stride + inner);

// another order of additions, and reflectors of columns that the ones before have changed
const near: Allowed = (expected) => 1e-10 * (1 + Math.abs(expected));

const householder_panel: Entry = (draw: Draw) => {
  const width = draw.large ? draw.integer(17, 40) : draw.size(17);
  const length = width + (draw.large ? draw.integer(200, 600) : draw.size(65));
  const [wRow, vRow] = [length + draw.integer(0, 5), length + draw.integer(0, 3)];
  const zero = draw.chance(0.2) ? draw.integer(0, width) : -1;
  const w = list(size(width, wRow, length), (at) => (at % wRow >= length ? NaN : Math.floor(at / wRow) === zero ? 0 : draw.number()));
  return {
    kernel: "householder_panel",
    args: [draw.inout(w, near, "f64"), draw.output(size(width, vRow, length), near, "f64"), draw.output(width * width, near, "f64"), length, width, wRow, vRow],
  };
};

export const factor = { householder_panel } satisfies Record<string, Entry>;
