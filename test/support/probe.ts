import { z } from "zod";
import { adapt, adapter } from "../../src/adapters/index.ts";
import type { Model } from "../../src/models/index.ts";
import type { Params, Regime, State, Training, View } from "../../src/nn/contracts.ts";
import { lowRank } from "../../src/operators/index.ts";
import { abs, add, dropout, mean, mul, scale, square, zeros, type Parameter, type Tensor } from "../../src/tensor/index.ts";

type Probe = { A: Tensor; B: Tensor };

const ema = (state: State): State => state["ema"] as State;
const count = (state: State, name: string, by = 1): void => void (state[name] = ((state[name] as number | undefined) ?? 0) + by);
const isA = (w: Parameter): boolean => w.name.endsWith("/A");
const at = (t: Training<Probe>, end: string) => t.views.find(({ site }) => site.path.endsWith(end))!;

/** Uses every hook and every tool of the loop at once; all it remembers is in its state. */
function busyRegime(log: string[]): Regime<Probe> {
  const state: State = { ema: {}, evaluations: 0 };
  const say = (t: Training<Probe>, what: string): void => void log.push(`${t.step} ${what}`);
  return {
    state,
    wants: ["hidden", "taps", "validation"],
    groups: (t) => [
      { parameters: t.views.map(({ params }) => params.B as Parameter), learningRateFactor: 2, weightDecay: 0, schedule: (step) => 1 / (1 + step) },
    ],
    phases: [
      { steps: 4 },
      {
        steps: 1000,
        trainable: (w) => !w.name.includes("up_proj"),
        onEnter(t) {
          say(t, "phase");
          count(state, "entered");
          for (const { params } of t.views) for (const s of t.moments(params.A as Parameter)) if ("t" in s) s["t"] = 0;
        },
      },
    ],
    beforeForward(t) {
      say(t, "beforeForward");
      t.live.values["noise"] = t.rng.random();
    },
    loss(t) {
      say(t, `loss of ${t.hidden.length} hidden states`);
      const penalties = t.views.filter(({ params }) => params.A.size > 0).map(({ params }) => mean(square(params.A)));
      return scale([...penalties, mean(square(t.hidden.at(-1)!))].reduce(add), 0.01);
    },
    onGradient: (_t, w, g) => (isA(w) ? scale(g, 0.5) : undefined),
    afterBackward(t) {
      say(t, `afterBackward with ${t.taps.size} taps`);
      for (const { site, params } of t.views) {
        const w = params.A as Parameter;
        const g = t.gradient(w);
        if (!g) continue;
        const now = abs(mul(w, g));
        const before = ema(state)[site.path] as Tensor | undefined;
        ema(state)[site.path] = before && String(before.shape) === String(now.shape) ? add(scale(before, 0.9), scale(now, 0.1)) : now;
      }
    },
    async beforeStep(t) {
      say(t, "beforeStep");
      const { loss, gradients } = await t.pass(t.validationBatch()!, { backward: true });
      count(state, "passed", loss + gradients!.size);
    },
    afterStep(t) {
      const { params } = at(t, "layers.0.mlp.down_proj");
      say(t, `afterStep, gradient ${t.gradient(params.B as Parameter) ? "there" : "gone"}`);
      const view = at(t, "layers.1.self_attn.q_proj");
      const ranks = (of: View<Probe>, index: number[], A: "gather" | "reset", B: "gather" | "zero" | "reset"): void => {
        of.resize("A", 0, Int32Array.from(index), A, 0.5);
        of.resize("B", 1, Int32Array.from(index), B);
      };
      if (t.step === 1) ranks(view, [2, 0], "gather", "gather");
      if (t.step === 3) ranks(view, [0, 1, -1], "gather", "zero");
      if (t.step === 5) ranks(at(t, "layers.0.self_attn.v_proj"), [], "reset", "reset");
      if (t.step === 2) at(t, "layers.0.self_attn.o_proj").mask("A", Uint8Array.of(0, 1, 0));
      if (t.step === 6) at(t, "layers.0.self_attn.o_proj").mask("A", null);
      if (t.step === 7) t.trainable(params.B as Parameter, false, "drop");
      if (t.step === 9) t.trainable(params.B as Parameter, true);
    },
    afterEpoch: (t) => say(t, "afterEpoch"),
    afterEvaluation(t, loss) {
      say(t, "afterEvaluation");
      count(state, "evaluations", loss);
    },
  };
}

/** A LoRA with noise whose regime is busy; `log` gets a line a hook. */
export const busy = async (model: Model, log: string[] = []): Promise<Model> =>
  adapt(
    model,
    adapter({
      id: "busy",
      title: "test",
      paper: "none",
      kinds: ["linear"],
      options: z.object({ r: z.number().default(3) }),
      init: (site, o, { rng }): Probe & Params => ({ A: rng.uniform([o.r, site.in], 0.5), B: add(zeros([site.out, o.r]), rng.normal([site.out, o.r], 0.1)) }),
      update: (p) => lowRank(p.B, p.A),
      forward(x, y, p, site, _o, live) {
        const noisy = live.training ? dropout(x, 0.1 * (live.values["noise"] ?? 0), live.rng.fork(site.path)) : x;
        return lowRank(p.B, p.A).addTo!(y, noisy);
      },
      regime: () => busyRegime(log) as Regime<Probe & Params>,
      layout: { tensors: { linear: { A: "busy_A", B: "busy_B" } } },
    }),
    {},
    { targets: "all-linear" },
  );
