/** Sorting, selection, gathering, prefix sums and packed numbers. */
export const select = {} as const;
