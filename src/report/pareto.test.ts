import { parseHTML } from "linkedom";
import { describe, expect, it } from "vitest";
import { paretoFront, paretoPlot, type Point } from "./pareto.ts";

const points: Point[] = [
  { label: "small", x: 100, y: 4 },
  { label: "worse and larger", x: 200, y: 4.1 },
  { label: "better", x: 300, y: 3.5, spread: 0.02 },
  { label: "as good and larger", x: 400, y: 3.5 },
  { label: 'a <b> & "c"', x: 5000, y: 3.4 },
];

const drawn = (all: readonly Point[]) => parseHTML(paretoPlot({ title: "Loss", xTitle: "parameters", yTitle: "nats", points: all, limit: 1000 })).document;

describe("a Pareto plot", () => {
  it("marks what nothing cheaper equals", () => {
    const front = ["small", "better", 'a <b> & "c"'];
    expect(paretoFront(points).map(({ label }) => label)).toEqual(front);
    const document = drawn(points);
    expect(document.querySelectorAll("circle.point").length).toBe(2);
    expect([...document.querySelectorAll("circle.front title")].map((title) => title.textContent!.split(":")[0])).toEqual(expect.arrayContaining(front));
    expect(document.querySelector("desc")!.textContent).toContain("better: 3.5 ± 0.02 at 300");
  });

  it("stands lower for less and further right for more", () => {
    const at = (label: string): [number, number] => {
      const circle = [...drawn(points).querySelectorAll("circle")].find((one) => one.textContent!.startsWith(label))!;
      return [Number(circle.getAttribute("cx")), Number(circle.getAttribute("cy"))];
    };
    const [[x1, y1], [x2, y2], [x3]] = [at("small"), at("better"), at("a <b>")];
    expect([x1! < x2!, x2! < x3!, y1! < y2!]).toEqual([true, true, true]);
    // on the axis a factor is a length
    expect((x3! - x2!) / (x2! - x1!)).toBeCloseTo(Math.log(5000 / 300) / Math.log(3), 1);
  });

  it("keeps labels apart however close their points are", () => {
    const crowd = Array.from({ length: 30 }, (_, i) => ({ label: `method ${i}`, x: 1000 + i, y: 3 + (i % 7) / 1000 }));
    const document = drawn(crowd);
    const heights = [...document.querySelectorAll("text")]
      .filter((text) => text.textContent!.startsWith("method"))
      .map((text) => Number(text.getAttribute("y")));
    expect(heights.length).toBe(30);
    for (const [i, height] of heights.entries()) if (i > 0) expect(height - heights[i - 1]!).toBeGreaterThan(15.8);
    const [top, bottom] = [0, Number(document.querySelector("svg")!.getAttribute("height"))];
    expect([heights[0]! > top, heights.at(-1)! < bottom]).toEqual([true, true]);
  });

  it("is a drawing for a single point, and nothing for none", () => {
    expect(paretoPlot({ title: "Loss", xTitle: "parameters", yTitle: "nats", points: [points[0]!] })).not.toMatch(/NaN|Infinity|undefined/);
    expect(paretoPlot({ title: "Loss", xTitle: "parameters", yTitle: "nats", points: [] })).toBe("");
  });
});
