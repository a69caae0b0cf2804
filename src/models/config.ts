import type { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";

/** Reads the keys an architecture needs; others are left alone. The first wrong one ends in a sentence. */
export function parseConfig<S extends z.ZodObject>(schema: S, config: Config, modelType: string): z.output<S> {
  const parsed = schema.safeParse(config);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const key = issue.path.join(".");
  throw new StrutError("config", `config.json of a ${modelType} model has ${key} = ${JSON.stringify(config[key])}: ${issue.message}`, {
    path: key,
    hint: "Is the file complete, and of this architecture?",
  });
}
