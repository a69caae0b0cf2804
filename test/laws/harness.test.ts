import { describe, expect, it } from "vitest";
import { adapters } from "../../src/catalog.ts";
import { sheets } from "./counts.ts";
import { adapterLaws } from "./laws.ts";

const catalog = await adapters();

describe("the harness", () => {
  it("knows each law once, and only methods of the catalog", () => {
    expect(new Set(adapterLaws.map(({ name }) => name)).size).toBe(adapterLaws.length);
    expect(
      Object.keys(sheets).filter((id) => !catalog.some((method) => method.id === id)),
      "counts.ts names no other",
    ).toEqual([]);
  });
});
