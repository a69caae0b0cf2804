/** Products with structured, sparse and quantised matrices. */
export const sparse = {} as const;
