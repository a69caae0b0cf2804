import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { doubles, turned } from "./blocks.ts";
import { extents, scaledDoubles } from "./numbers.ts";

/** A partial matching, −1 where there is none, and prices with cost[i, j] ≥ price of row i + price of column j, equal on matched pairs. */
interface Matching {
  columnOf: Int32Array;
  rowOf: Int32Array;
  rowPrice: Float64Array;
  columnPrice: Float64Array;
}

/** Matches row `start` too: Dijkstra's shortest path over reduced costs to the nearest free column; the pairs along it change partners. */
function augment(cost: Float64Array, { columnOf, rowOf, rowPrice, columnPrice }: Matching, start: number, buffers: Buffers): void {
  const { distance, previous, open } = buffers;
  const cols = rowOf.length;
  distance.fill(Infinity);
  for (let j = 0; j < cols; j++) open[j] = j;
  let [left, row, shortest, end] = [cols, start, 0, -1];
  while (end < 0) {
    let [best, least] = [-1, Infinity];
    const base = shortest - rowPrice[row]!;
    for (let at = 0; at < left; at++) {
      const j = open[at]!;
      const through = base + cost[row * cols + j]! - columnPrice[j]!;
      if (through < distance[j]!) {
        distance[j] = through;
        previous[j] = row;
      }
      const d = distance[j]!;
      if (d < least || (d === least && rowOf[j]! < 0 && rowOf[open[best]!]! >= 0)) [least, best] = [d, at];
    }
    shortest = least;
    const column = open[best]!;
    open[best] = open[--left]!;
    open[left] = column;
    if (rowOf[column]! < 0) end = column;
    else row = rowOf[column]!;
  }
  rowPrice[start]! += shortest;
  for (let at = left; at < cols; at++) {
    const j = open[at]!;
    if (j === end) continue;
    rowPrice[rowOf[j]!]! += shortest - distance[j]!;
    columnPrice[j]! -= shortest - distance[j]!;
  }
  for (let j = end, i = -1; i !== start;) {
    i = previous[j]!;
    rowOf[j] = i;
    [columnOf[i], j] = [j, columnOf[i]!];
  }
}

interface Buffers {
  distance: Float64Array;
  previous: Int32Array;
  open: Int32Array;
}

/**
 * The pairs of rows and columns, no row and no column twice and min(m, n) of them, with the smallest sum of cost (largest with
 * `maximize`): the column of each row, −1 where a row has none. Exact, O(min(m, n)²·max(m, n)), by shortest augmenting paths:
 * Jonker & Volgenant 1987, Crouse 2016. Throws on entries that are not finite.
 *
 * @example
 * const columns = await assignment(tensor([4, 1, 3, 2, 0, 5, 3, 2, 2], [3, 3])); // 1, 0, 2
 */
export async function assignment(cost: Tensor, { maximize = false }: { maximize?: boolean } = {}): Promise<Int32Array> {
  const [rows, cols] = extents(cost, "assignment");
  return scope(() => {
    const tall = rows > cols;
    const [m, n] = tall ? [cols, rows] : [rows, cols];
    const values = doubles(scaledDoubles(tall ? turned(cost) : cost, "assignment").matrix);
    if (maximize) for (let i = 0; i < values.length; i++) values[i] = -values[i]!;
    const found: Matching = {
      columnOf: new Int32Array(m).fill(-1),
      rowOf: new Int32Array(n).fill(-1),
      rowPrice: new Float64Array(m),
      columnPrice: new Float64Array(n),
    };
    const buffers = { distance: new Float64Array(n), previous: new Int32Array(n), open: new Int32Array(n) };
    for (let i = 0; i < m; i++) augment(values, found, i, buffers);
    return tall ? found.rowOf : found.columnOf;
  });
}
