import { StrutError } from "../errors.ts";
import { accumulate } from "../optimizers/in-place.ts";
import { add, backward, contiguous, engine, scale, scope, type Parameter, type Tensor } from "../tensor/index.ts";
import { copyOf } from "../tensor/tensor.ts";
import { bytesTogether } from "./state-tree.ts";
import { updateAtOnce } from "./in-backward.ts";
import type { Pulse } from "./pulse.ts";
import type { Session } from "./session.ts";

/** The error of a run whose numbers are no longer numbers. */
export const diverged = (what: string, value: number, step: number, learningRate: number): StrutError =>
  new StrutError("diverged", `${what} became ${value} at step ${step + 1}; training stopped before the weights moved`, {
    hint: `Lower the learning rate (now ${learningRate}), warm it up, or clip gradients. A checkpoint from before this step is still good.`,
  });

/** Loss and gradients of one step: the mean over its batches. `rate` stands in the message if the loss is not finite. */
export async function stepGradients(session: Session, pulse: Pulse, rate: number): Promise<{ loss: number; extra: number | undefined }> {
  const { accumulate: count } = session.settings;
  let [loss, extra] = [0, undefined as number | undefined];
  for (let micro = 0; micro < count; micro++) {
    if (micro > 0) session.batch = await session.source.batch(session.step * count + micro);
    session.hidden = [];
    session.setLive(`step/${session.step}/${micro}`);
    // what the map holds outlives this scope; the rest of a batch's memory ends with it
    session.gradients = await scope(async () => {
      const part = await batchGradients(session, pulse, rate, 1 / count, micro === count - 1);
      loss += part.loss / count;
      if (part.extra !== undefined) extra = (extra ?? 0) + part.extra / count;
      return session.gradients;
    });
    session.hidden = [];
  }
  session.loss = loss;
  session.taps?.finish();
  session.structure.maskGradients();
  return { loss, extra };
}

async function batchGradients(
  session: Session,
  pulse: Pulse,
  rate: number,
  share: number,
  last: boolean,
): Promise<{ loss: number; extra: number | undefined }> {
  const task = session.settings.task.loss(session.model, session.batch, session.run);
  const value = await task.item();
  const terms = session.regimes.flatMap(({ regime, training }) => regime.loss?.(training) ?? []);
  let extra: number | undefined;
  for (const term of terms) extra = (extra ?? 0) + (await term.item());
  const { used } = session;
  used.forward = Math.max(used.forward, engine().pool.usedBytes);
  const total = value + (extra ?? 0);
  if (!Number.isFinite(total)) throw diverged("the loss", total, session.step, rate);
  await pulse.beat();
  const whole = terms.reduce(add, task);
  const sums = session.gradients;
  const seen = new Set<Parameter>();
  await backward(share === 1 ? whole : scale(whole, share), {
    async onGradient(w, gradient) {
      seen.add(w);
      const sum = sums.get(w);
      if (sum) accumulate(sum, 1, gradient);
      await receive(session, w, sum ?? gradient, last);
      if (session.settings.updateInBackward) {
        used.gradients = Math.max(used.gradients, bytesTogether(sums.values()));
        await updateAtOnce(session, w, rate);
      }
      await pulse.beat();
    },
  });
  if (last) for (const [w, sum] of [...sums]) if (!seen.has(w)) await receive(session, w, sum, true);
  separate(sums);
  used.gradients = Math.max(used.gradients, bytesTogether(sums.values()));
  return { loss: value, extra };
}

/** Puts a gradient in its place; a finished one is shown to the regimes first. */
async function receive({ gradients, regimes, settleState }: Session, w: Parameter, gradient: Tensor, finished: boolean): Promise<void> {
  let current = gradient;
  if (finished)
    for (const { regime, training } of regimes) {
      if (!regime.onGradient) continue;
      const replaced = await regime.onGradient(training, w, current);
      settleState(regime);
      if (!current.handle.block && !replaced) return void gradients.delete(w);
      if (!replaced) continue;
      replaced.node = undefined;
      if (String(replaced.shape) !== String(w.shape))
        throw new StrutError("shape", `onGradient gave ${w.name}, of shape [${w.shape}], a gradient of shape [${replaced.shape}]`);
      current = contiguous(replaced);
    }
  gradients.set(w, current);
}

/** Gradients are written in place from here on: two that came as one buffer get a buffer each. */
function separate(gradients: Map<Parameter, Tensor>): void {
  const owners = new Set<unknown>();
  for (const [w, gradient] of gradients) {
    if (owners.has(gradient.handle)) gradients.set(w, copyOf(gradient));
    owners.add(gradient.handle);
  }
}
