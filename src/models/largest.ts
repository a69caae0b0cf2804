/** The places of the n largest scores, ties to earlier ones, in order of place. */
export const largestPlaces = (scores: ArrayLike<number>, n: number): number[] =>
  Array.from(scores, (_, i) => i)
    .sort((a, b) => scores[b]! - scores[a]! || a - b)
    .slice(0, n)
    .sort((a, b) => a - b);
