import { StrutError } from "../errors.ts";
import { fileError, writeAtomically, writeFolderAtomically } from "../formats/files.ts";
import { readJsonObject } from "../formats/huggingface.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { writeSafetensors } from "../formats/safetensors-write.ts";
import { buffers } from "../models/model.ts";
import { toWrite } from "../models/save.ts";
import type { State } from "../nn/contracts.ts";
import { keepState } from "../optimizers/optimization.ts";
import { engine, fromBytes, tensor, toBytes, type DType, type Tensor } from "../tensor/index.ts";
import type { Progress } from "./loop.ts";
import type { CheckpointOptions } from "./options.ts";
import { firstDifference, recipeOf } from "./recipe.ts";
import type { Session } from "./session.ts";
import { flatten, restoreInto, unflatten, type Scalar } from "./state-tree.ts";
import { files, paths } from "../formats/system.ts";

const { dirname, join, resolve } = paths;
const FORMAT = 1;
const [TENSORS, SCALARS] = ["trainer.safetensors", "trainer.json"];
const folderName = (step: number): string => `step-${String(step).padStart(7, "0")}`;

/** trainer.json */
interface Saved {
  readonly format: number;
  readonly step: number;
  readonly backend: string;
  readonly cpu: string;
  readonly recipe: Readonly<Record<string, unknown>>;
  readonly trainable: readonly string[];
  readonly progress: { readonly loss: Scalar | null; readonly best: Progress["best"] | null; readonly waited: number; readonly evaluated: number };
  readonly scalars: Readonly<Record<string, Scalar>>;
}

export interface Found {
  readonly step: number;
  readonly path: string;
  readonly progress: Progress;
  /** Whether it lies in the folder that this run writes to. */
  readonly own: boolean;
}

/** Complete checkpoints of a folder, newest first. */
export async function checkpointsIn(dir: string): Promise<{ step: number; path: string }[]> {
  const names = await files.readdir(dir).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT") return [];
    throw fileError(cause, dir, "read");
  });
  return names
    .flatMap((name) => {
      const step = /^step-(\d+)$/.exec(name)?.[1];
      return step === undefined ? [] : [{ step: Number(step), path: join(dir, name) }];
    })
    .sort((a, b) => b.step - a.step);
}

/** Where a run keeps its checkpoints. */
export class CheckpointFolder {
  readonly #options: CheckpointOptions;
  readonly #recipe: Readonly<Record<string, unknown>>;

  private constructor(options: CheckpointOptions, recipe: Readonly<Record<string, unknown>>) {
    this.#options = options;
    this.#recipe = recipe;
  }

  /** Opens the folder, and brings the session to where the checkpoint to resume stands. */
  static async open(
    session: Session,
    options: CheckpointOptions | undefined,
    resume: boolean | string,
    warn: (message: string) => void,
  ): Promise<{ folder: CheckpointFolder | undefined; found: Found | undefined }> {
    const recipe = recipeOf(session);
    if (options) await prepare(options.dir, resume !== false);
    const folder = options ? new CheckpointFolder(options, recipe) : undefined;
    if (resume === false) return { folder, found: undefined };
    const dir = resume === true ? options!.dir : resume;
    const single = /(^|[/\\])step-\d+[/\\]?$/.test(dir);
    const candidates = single ? [{ step: NaN, path: dir }] : await checkpointsIn(dir);
    if (candidates.length === 0 && resume !== true)
      throw new StrutError("checkpoint", `there is no checkpoint in ${dir}`, { path: dir, hint: "Name the folder that a run wrote its checkpoints to." });
    for (const { path } of candidates) {
      const read = await readCheckpoint(path).catch((error: StrutError) => {
        if (single) throw error;
        warn(`${path} cannot be read and was passed over: ${error.message}`);
      });
      if (!read) continue;
      refuseOther(read.saved.recipe, recipe, path);
      apply(session, read.saved, read.tensors, path);
      const { name, variant } = engine().backend;
      if (read.saved.backend !== name || read.saved.cpu !== variant)
        warn(
          `the checkpoint was made on ${read.saved.backend} (${read.saved.cpu}), this is ${name} (${variant}): the run goes on, but its numbers will differ in the last bits`,
        );
      const { progress, step } = read.saved;
      return {
        folder,
        found: {
          step,
          path,
          own: options !== undefined && dirname(resolve(path)) === resolve(options.dir),
          progress: { ...progress, best: progress.best ?? undefined, loss: Number(progress.loss ?? NaN) },
        },
      };
    }
    return { folder, found: undefined };
  }

  /** Writes a checkpoint whole or not at all, then removes those beyond the newest `keep` but the best. Gives its path. */
  async save(session: Session, progress: Progress): Promise<string> {
    const { dir, keep = 2, openFile } = this.#options;
    const path = join(dir, folderName(session.step));
    const { tensors, scalars } = flatten(stateOf(session));
    const { name: backend, variant: cpu } = engine().backend;
    const saved: Saved = {
      format: FORMAT,
      step: session.step,
      backend,
      cpu,
      recipe: this.#recipe,
      scalars,
      trainable: [...session.trained].filter(([, w]) => w.trainable).map(([name]) => name),
      progress: { ...progress, best: progress.best ?? null, loss: Number.isFinite(progress.loss) ? progress.loss : null },
    };
    const file = openFile ? { openFile } : {};
    try {
      await writeFolderAtomically(
        path,
        async (temporary) => {
          await writeSafetensors(
            join(temporary, TENSORS!),
            [...tensors].map(([name, value]) => toWrite(name, value)),
            { metadata: { format: "strut" }, ...file },
          );
          await writeAtomically(join(temporary, SCALARS!), `${JSON.stringify(saved, null, 1)}\n`, file);
        },
        { overwrite: true },
      );
    } catch (cause) {
      const last = (await checkpointsIn(dir))[0];
      const { message, hint } = cause as StrutError;
      throw new StrutError("checkpoint", `the checkpoint of step ${session.step} could not be written: ${message}`, {
        path,
        cause,
        hint: `${hint ?? "Check the disk."} ${last ? `The last good checkpoint is ${last.path}.` : "There is no earlier one."}`,
      });
    }
    const older = (await checkpointsIn(dir)).filter(({ step }) => step < session.step).slice(keep - 1);
    for (const old of older.filter(({ step }) => step !== progress.best?.step)) await files.rm(old.path, { recursive: true, force: true });
    return path;
  }
}

/** Makes the folder, clears what a killed run left half-written, and refuses to mix two runs. */
async function prepare(dir: string, resuming: boolean): Promise<void> {
  try {
    await files.mkdir(dir, { recursive: true });
    for (const name of await files.readdir(dir))
      if (/^\.step-\d+\..*\.(tmp|old)$/.test(name)) await files.rm(join(dir, name), { recursive: true, force: true });
  } catch (cause) {
    throw fileError(cause, dir, "write");
  }
  const [newest] = await checkpointsIn(dir);
  if (newest && !resuming)
    throw new StrutError("checkpoint", `${dir} already holds checkpoints of a run, up to step ${newest.step}`, {
      path: dir,
      hint: "Resume that run, or choose another folder.",
    });
}

async function readCheckpoint(path: string): Promise<{ saved: Saved; tensors: Map<string, Tensor> }> {
  if (!(await files.stat(path).catch(() => undefined))?.isDirectory()) throw new StrutError("checkpoint", `${path} is not a checkpoint's folder`, { path });
  const saved = (await readJsonObject(join(path, SCALARS!), "It is no complete checkpoint.")) as unknown as Saved;
  if (saved.format !== FORMAT)
    throw new StrutError("checkpoint", `${path} has checkpoint format ${saved.format}, this version of strut reads ${FORMAT}`, {
      path,
      hint: "Resume it with the version that wrote it.",
    });
  const file = await openSafetensorsFile(join(path, TENSORS!));
  try {
    const tensors = new Map<string, Tensor>();
    for (const [name, { dtype, shape }] of file.entries) tensors.set(name, fromBytes(await file.read(name), shape, dtype.toLowerCase() as DType));
    return { saved, tensors };
  } finally {
    await file.close();
  }
}

function refuseOther(saved: Readonly<Record<string, unknown>>, now: Readonly<Record<string, unknown>>, path: string): void {
  const difference = firstDifference(saved, now);
  if (!difference) return;
  throw new StrutError("checkpoint", `${path} belongs to another run: ${difference.where} was ${difference.before}, now it is ${difference.now}`, {
    path,
    hint: "Resume with the options, data and model the run was started with, or start anew in another folder.",
  });
}

/** Everything of a session that changes while it trains. */
function stateOf(session: Session): State {
  const masks = [...session.structure.masks].map(([w, rows]): [string, Tensor] => [session.nameOf(w), tensor(rows, [rows.length], "u8")]);
  return {
    parameters: Object.fromEntries(session.trained),
    buffers: Object.fromEntries(buffers(session.model)),
    optimizer: session.optimization.state(session.nameOf),
    regimes: Object.fromEntries(session.regimes.flatMap(({ name, regime }) => (regime.state ? [[name, regime.state]] : []))),
    masks: Object.fromEntries(masks),
    ...(session.averages ? { averages: session.averages.state } : {}),
  };
}

function apply(session: Session, saved: Saved, tensors: ReadonlyMap<string, Tensor>, path: string): void {
  const state = unflatten(tensors, saved.scalars);
  const parameters = (state["parameters"] ?? {}) as Record<string, Tensor>;
  const statistics = (state["buffers"] ?? {}) as Record<string, Tensor>;
  for (const [name, buffer] of buffers(session.model)) {
    if (!statistics[name])
      throw new StrutError("checkpoint", `${path} does not hold ${name}, which training moves`, {
        path,
        hint: "It was written before checkpoints held running statistics; start anew in another folder.",
      });
    buffer.assign(statistics[name]);
  }
  const trainable = new Set(saved.trainable);
  for (const [name, w] of session.trained) {
    w.assign(parameters[name]!);
    w.trainable = trainable.has(name);
  }
  session.optimization.restore((state["optimizer"] ?? {}) as State, session.trained);
  for (const [name, rows] of Object.entries((state["masks"] ?? {}) as Record<string, Tensor>))
    session.structure.masks.set(session.trained.get(name)!, toBytes(rows));
  session.averages?.restore((state["averages"] ?? {}) as State);
  const regimes = (state["regimes"] ?? {}) as State;
  for (const { name, regime } of session.regimes) {
    if (!regime.state) continue;
    restoreInto(keepState(regime.state), keepState((regimes[name] ?? {}) as State));
  }
}
