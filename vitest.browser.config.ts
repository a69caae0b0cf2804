import { existsSync } from "node:fs";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig, type TestProjectConfiguration } from "vitest/config";

const chromium = [process.env["CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((path) => path && existsSync(path));
if (!chromium) throw new Error("no Chromium was found: install it, or name its program in CHROMIUM");

/** Without these headers a page has no shared memory, so no threads. */
const isolation = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Kernels, linear algebra and laws; the pool's own stress test is a native program. */
const suite = { include: ["test/kernels/*.test.ts", "src/linalg/**/*.test.ts", "test/laws/*.test.ts"], exclude: ["test/kernels/pool.test.ts"] };

const project = (name: string, headers: Record<string, string>, include: string[], place: "page" | "worker" | "alone"): TestProjectConfiguration => ({
  server: { headers },
  publicDir: "out/bundle",
  test: {
    name,
    include: [...include, "test/browser/*.test.ts"],
    exclude: suite.exclude,
    globalSetup: "test/browser/bundle.ts",
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
    projects: [project("page", isolation, suite.include, "page"), project("page without threads", {}, suite.include, "alone")],
  },
});
