import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig, type TestProjectConfiguration } from "vitest/config";

const chromium = [process.env["CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((path) => path && existsSync(path));
if (!chromium) throw new Error("no Chromium was found: install it, or name its program in CHROMIUM");

/** Without these headers a page has no shared memory, so no threads. */
const isolation = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Kernels, linear algebra and laws; the pool's own stress test is a native program. */
const suite = { include: ["test/kernels/*.test.ts", "src/linalg/**/*.test.ts", "test/laws/*.test.ts"], exclude: ["test/kernels/pool.test.ts"] };

/** Test files that a worker loads find another vitest there. */
const inWorker = {
  name: "vitest-in-worker",
  enforce: "pre" as const,
  resolveId: (source: string, importer?: string) =>
    source === "vitest" && /\/(src|test\/(kernels|laws|support))\/|\/place\.test\.ts/.test(importer ?? "")
      ? fileURLToPath(new URL("test/browser/vitest-in-worker.ts", import.meta.url))
      : undefined,
};

const project = (name: string, place: "page" | "worker" | "alone"): TestProjectConfiguration => ({
  server: { headers: place === "alone" ? {} : isolation },
  publicDir: "out/bundle",
  optimizeDeps: { include: ["chai", "fast-check", "zod", "@huggingface/tokenizers", "@vitest/expect", "@vitest/runner"] },
  plugins: place === "worker" ? [inWorker] : [],
  test: {
    name,
    include: place === "worker" ? ["test/browser/worker.test.ts"] : [...suite.include, "test/browser/*.test.ts"],
    exclude: place === "worker" ? [] : [...suite.exclude, "test/browser/worker.test.ts"],
    provide: { place },
    testTimeout: 60_000,
    hookTimeout: 60_000,
    browser: {
      enabled: true,
      headless: true,
      screenshotFailures: false,
      instances: [{ browser: "chromium" }],
      provider: playwright({ launchOptions: { executablePath: chromium, args: ["--no-sandbox"] } }),
    },
  },
});

export default defineConfig({
  test: {
    globalSetup: "test/browser/bundle.ts",
    projects: [project("page", "page"), project("worker", "worker"), project("page without threads", "alone")],
  },
});
