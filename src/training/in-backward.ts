import { StrutError } from "../errors.ts";
import type { Optimization } from "../optimizers/optimization.ts";
import { free, sumSquares, type Parameter } from "../tensor/index.ts";
import type { Settings, TrainOptions } from "./options.ts";
import type { BoundRegime, Session } from "./session.ts";

const path = "updateInBackward";

const refused = (why: string, hint: string): StrutError =>
  new StrutError("option", `updateInBackward moves each weight before the other gradients are known, but ${why}`, { path, hint });

/** Refuses what needs all gradients at once. */
export function checkUpdateInBackward(settings: Settings, options: TrainOptions, regimes: readonly BoundRegime[], optimization: Optimization): void {
  if (options.clip !== undefined) throw refused("clip needs the norm of all of them", "Leave out `clip`, or limit each number by `clipValue`.");
  if (settings.accumulate > 1)
    throw refused(`accumulate is ${settings.accumulate}, which adds up whole gradients`, "Use accumulate: 1, with larger batches if memory allows.");
  if (!optimization.singly)
    throw refused(
      "a link of the optimiser sees several tensors together",
      'Choose an optimiser whose links are all of scope "parameter", such as adamw or sgd.',
    );
  if (optimization.wantsTaps)
    throw refused("a link of the optimiser reads taps, which are complete only after backward", "Choose another optimiser, or train without updateInBackward.");
  for (const { name, regime } of regimes)
    for (const hook of ["afterBackward", "beforeStep"] as const)
      if (regime[hook]) throw refused(`${name} has a hook ${hook}, which acts between backward and update`, "Train without updateInBackward.");
}

/** The error of a hook that asks for a gradient which was freed in backward. */
export const gradientIsGone = (name: string): StrutError =>
  new StrutError("gradient", `${name} asks for a gradient that updateInBackward used and freed`, {
    hint: "Read gradients in onGradient, one at a time, or train without updateInBackward.",
  });

/** Moves one weight with its finished gradient, and frees that. */
export async function updateAtOnce(session: Session, w: Parameter, rate: number): Promise<void> {
  const gradient = session.gradients.get(w);
  if (!gradient) return;
  session.structure.maskGradients();
  const squares = sumSquares([gradient]);
  if (!Number.isFinite(squares))
    throw new StrutError(
      "diverged",
      `the gradient of ${w.name} became ${squares} at step ${session.step + 1}, when other weights had moved in backward already`,
      {
        hint: `Lower the learning rate (now ${rate}) or warm it up, and start from a checkpoint of before this step.`,
      },
    );
  session.usedSquares += squares;
  session.optimization.clipValues([gradient]);
  await session.optimization.update(session.gradients, session.context());
  session.structure.hold(w);
  session.gradients.delete(w);
  free(gradient);
}
