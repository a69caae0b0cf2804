/// <reference types="vite/client" />

/** The test files that run in a worker too, by path. */
export const suite = import.meta.glob([
  "../kernels/*.test.ts",
  "!../kernels/pool.test.ts",
  "../../src/linalg/**/*.test.ts",
  "../laws/*.test.ts",
  "./place.test.ts",
]);
