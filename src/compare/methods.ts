import type { Adapter } from "../adapters/index.ts";
import { adapters, methodById } from "../catalog.ts";
import { nearest, StrutError } from "../errors.ts";
import { camel, parseOptions } from "../nn/options.ts";

/** A method to compare, with the options that were asked for. */
export interface Choice {
  /** As it was written: `lora`, or `lora:alpha=16`. */
  readonly label: string;
  readonly method: Adapter;
  readonly options: Readonly<Record<string, unknown>>;
}

/** Numbers, booleans and lists as JSON; anything else is text. */
function valueOf(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

/**
 * The methods of a list such as `lora,dora:r=4,alpha=8,rslora`: options stand behind a colon; a part with an equals sign
 * belongs to the method before it. Without a list, every adapter of the catalog.
 */
export async function chooseMethods(list?: string): Promise<Choice[]> {
  const known = await adapters();
  if (list === undefined) return known.map((method) => ({ label: method.id, method, options: {} }));
  const labels: string[] = [];
  for (const part of list.split(",").map((text) => text.trim())) {
    if (/^[^:]*=/.test(part) && labels.length > 0) labels[labels.length - 1] += `,${part}`;
    else if (part !== "") labels.push(part);
  }
  if (labels.length === 0) throw new StrutError("option", "the list of methods is empty", { path: "methods", hint: "Leave it out to compare every adapter." });
  const twice = labels.find((label, i) => labels.indexOf(label) !== i);
  if (twice !== undefined) throw new StrutError("option", `the method ${twice} stands twice in the list`, { path: "methods", hint: "Name it once." });
  return Promise.all(labels.map((label) => choose(label, known)));
}

async function choose(label: string, known: readonly Adapter[]): Promise<Choice> {
  const colon = label.indexOf(":");
  const id = colon < 0 ? label : label.slice(0, colon);
  const method = known.find((adapter) => adapter.id === id);
  if (!method) throw await noAdapter(id, known);
  const options: Record<string, unknown> = {};
  for (const part of colon < 0 ? [] : label.slice(colon + 1).split(",")) {
    const [, key, value] = /^\s*([^=]+?)\s*=(.*)$/.exec(part) ?? [];
    if (key === undefined)
      throw new StrutError("option", `${label}: ${JSON.stringify(part)} is no option`, { path: label, hint: `Write it as ${id}:NAME=VALUE,NAME=VALUE.` });
    options[key] = valueOf(value!.trim());
  }
  parseOptions(method, options, method.layout.options);
  return { label, method, options };
}

async function noAdapter(id: string, known: readonly Adapter[]): Promise<StrutError> {
  const ids = known.map((adapter) => adapter.id);
  const other = await methodById(id).catch(() => undefined);
  const [near] = nearest(id, ids, 1);
  return new StrutError("method", other ? `${id} is one of ${other.family}, not an adapter` : `there is no adapter ${JSON.stringify(id)}`, {
    path: id,
    hint: near && !other ? `Did you mean ${near}?` : `Adapters: ${ids.join(", ")}.`,
  });
}

/** The option that sets how much a method stores, and the value asked for, if one was. */
export function sizeOf({ method, options }: Choice): { name: string; given?: number } | undefined {
  const name = method.size ?? ("r" in method.options.shape ? "r" : undefined);
  if (name === undefined) return undefined;
  const key = Object.keys(options).find((key) => camel(key) === name || method.layout.options?.[name] === key);
  return { name, ...(key === undefined ? {} : { given: options[key] as number }) };
}
