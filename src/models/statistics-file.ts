import { z } from "zod";
import { StrutError } from "../errors.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { writeSafetensors } from "../formats/safetensors-write.ts";
import type { Statistic } from "../nn/contracts.ts";
import { fromBytes, keep, type DType, type Tensor } from "../tensor/index.ts";
import type { SiteStatistics } from "./recorder.ts";
import { toWrite } from "./save.ts";
import type { Statistics } from "./statistics.ts";

const FORMAT = "strut-statistics-1";

const site = z.object({ rows: z.number().nonnegative(), input: z.string(), tensors: z.record(z.string(), z.string()) });
const description = z.object({ tokens: z.number().nonnegative(), sequences: z.number().nonnegative(), sites: z.record(z.string(), site) });

/**
 * Writes statistics as one safetensors file: tensors named site.statistic, those that sites share once; counts in the metadata.
 *
 * @example
 * const statistics = await collectStatistics(model, [{ ids: [[1, 403, 407, 261]] }], { wants: ["inputNorm"] });
 * await saveStatistics(statistics, "statistics.safetensors");
 */
export async function saveStatistics({ tokens, sequences, sites }: Statistics, file: string): Promise<void> {
  const names = new Map<Tensor, string>();
  const described = [...sites].map(([path, { rows, input, ...found }]) => {
    const tensors = Object.entries(found).map(([name, tensor]) => {
      if (!names.has(tensor)) names.set(tensor, `${path}.${name}`);
      return [name, names.get(tensor)!];
    });
    return [path, { rows, input, tensors: Object.fromEntries(tensors) as Record<string, string> }];
  });
  const metadata = { format: FORMAT, statistics: JSON.stringify({ tokens, sequences, sites: Object.fromEntries(described) }) };
  await writeSafetensors(
    file,
    [...names].map(([tensor, name]) => toWrite(name, tensor)),
    { metadata },
  );
}

/** Reads what `saveStatistics` wrote. */
export async function loadStatistics(path: string): Promise<Statistics> {
  const file = await openSafetensorsFile(path);
  const refused = (why: string): StrutError =>
    new StrutError("files", `${path} holds no statistics: ${why}`, { path, hint: "Name a file that saveStatistics wrote." });
  try {
    if (file.metadata["format"] !== FORMAT) throw refused(`its format is ${file.metadata["format"] ?? "not named"}, expected ${FORMAT}`);
    const parsed = description.safeParse(parseJson(file.metadata["statistics"]));
    if (!parsed.success) throw refused(`its description is broken (${z.prettifyError(parsed.error)})`);
    const { tokens, sequences, sites } = parsed.data;
    const tensors = new Map<string, Tensor>();
    for (const [name, { dtype, shape }] of file.entries) tensors.set(name, keep(fromBytes(await file.read(name), shape, dtype.toLowerCase() as DType)));
    const found = Object.entries(sites).map(([at, { rows, input, tensors: named }]): [string, SiteStatistics] => {
      const own = Object.entries(named).map(([statistic, name]): [Statistic, Tensor] => {
        const tensor = tensors.get(name);
        if (!tensor) throw refused(`the tensor ${name} is missing`);
        return [statistic as Statistic, tensor];
      });
      return [at, { rows, input, ...(Object.fromEntries(own) as Partial<Record<Statistic, Tensor>>) }];
    });
    return { tokens, sequences, sites: new Map(found) };
  } finally {
    await file.close();
  }
}

function parseJson(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? "");
  } catch {
    return undefined;
  }
}
