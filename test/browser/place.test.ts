import { describe, expect, inject, it } from "vitest";
import { start, stop } from "../../src/tensor/index.ts";

const place = inject("place");

describe("the engine in a browser", () => {
  it("runs on WebAssembly, with threads where the page is isolated, and says why not elsewhere", async () => {
    const { backend, notes } = await start();
    expect([backend.name, backend.threads > 1]).toEqual(["wasm", place !== "alone"]);
    expect(notes).toEqual([
      "native: native code runs in Node only",
      ...(place === "alone" ? [expect.stringMatching(/^wasm with threads: this page is not cross-origin isolated/)] : []),
    ]);
    stop();
  });
});
