import { describe, expect, inject, it } from "vitest";
import type * as page from "../bundle/page.ts";

describe("a bundled application", () => {
  it("starts the engine, trains an adapter, saves it and loads it again", async () => {
    const url = new URL("/page.js", location.href).href;
    const { run } = (await import(/* @vite-ignore */ url)) as typeof page;
    const { backend, threads, losses, saved, loaded } = await run();
    expect([backend, threads > 1]).toEqual(["wasm", inject("place") !== "alone"]);
    expect(losses.length).toBe(2);
    expect(losses[1]).toBeLessThan(losses[0]!);
    expect(saved).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    expect(loaded).toEqual(["default"]);
  });
});
