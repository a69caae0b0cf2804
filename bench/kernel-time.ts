import { engine } from "strut/tensor";

export interface KernelTimes {
  /** Forgets what was measured. */
  reset(): void;
  /** Shares of `seconds`: outside of products and attention, outside of all kernels, and of the slowest kernels. */
  shares(seconds: number): Record<string, unknown>;
}

const products = /^(gemm|attention)/;

/** Clocks every kernel from now on, about 0.1 µs a call. */
export function watchKernels(): KernelTimes {
  const { backend } = engine();
  const totals = new Map<string, number>();
  const clocked = Object.entries(backend.kernels).map(([name, kernel]) => {
    const run = kernel as (...values: unknown[]) => void;
    return [
      name,
      (...values: unknown[]): void => {
        const began = performance.now();
        run(...values);
        totals.set(name, (totals.get(name) ?? 0) + (performance.now() - began) / 1000);
      },
    ];
  });
  Object.assign(backend, { kernels: Object.fromEntries(clocked) as typeof backend.kernels });
  const sum = (of: (name: string) => boolean): number => [...totals].reduce((total, [name, seconds]) => total + (of(name) ? seconds : 0), 0);
  const percent = (share: number): number => Math.round(share * 1000) / 10;
  return {
    reset: () => totals.clear(),
    shares: (seconds) => ({
      outside_products_percent: percent(1 - sum((name) => products.test(name)) / seconds),
      outside_kernels_percent: percent(1 - sum(() => true) / seconds),
      slowest_kernels_percent: Object.fromEntries(
        [...totals]
          .sort(([, a], [, b]) => b - a)
          .slice(0, 6)
          .map(([name, time]) => [name, percent(time / seconds)]),
      ),
    }),
  };
}
