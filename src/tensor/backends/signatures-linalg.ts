/** Panels and solvers of the linear algebra. */
export const linalg = {} as const;
