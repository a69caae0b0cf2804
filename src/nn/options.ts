import type { z } from "zod";
import { nearest, StrutError } from "../errors.ts";
import type { Method } from "./contracts.ts";

export const camel = (name: string): string => name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
export const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/**
 * Checks a method's options and fills in its defaults. PEFT's spelling is accepted beside ours (`lora_alpha`, `use_rslora`);
 * an unknown option is an error with the nearest name.
 */
export function parseOptions<O extends z.ZodObject>(
  method: Pick<Method<O>, "id" | "options">,
  given: Readonly<Record<string, unknown>>,
  aliases: Readonly<Record<string, string>> = {},
): z.output<O> {
  const known = Object.keys(method.options.shape);
  const byAlias = new Map(Object.entries(aliases).map(([name, alias]) => [alias, name]));
  const options: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(given)) {
    const name = byAlias.get(key) ?? (known.includes(key) ? key : camel(key));
    if (!known.includes(name)) {
      const near = nearest(name, known, 1)[0];
      throw new StrutError("option", `${method.id} has no option ${key}`, {
        path: key,
        hint: near ? `Did you mean ${near}?` : `Its options are ${known.join(", ")}.`,
      });
    }
    if (name in options) throw new StrutError("option", `${method.id}: option ${name} is given twice, as ${key} too`, { path: key, hint: "Keep one of them." });
    if (value !== undefined) options[name] = value;
  }
  const parsed = method.options.safeParse(options);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const name = String(issue.path[0]);
  throw new StrutError("option", `${method.id}: ${issue.path.join(".")} is ${JSON.stringify(options[name])}: ${issue.message}`, {
    path: name,
    hint: `${name}: ${method.options.shape[name]?.description ?? "see the documentation"}.`,
  });
}
