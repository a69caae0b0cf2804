import type { Command } from "commander";
import { z } from "zod";
import { methodById, methodIds } from "../catalog.ts";
import type { Method } from "../nn/contracts.ts";
import { facts, table } from "../report/table.ts";
import { coloured, print, printJson, type Io } from "./io.ts";
import { jsonOption } from "./options.ts";

export function define(command: Command, io: Io): void {
  command
    .argument("[id]", "a method to describe, with its options")
    .addOption(jsonOption())
    .action(async (id: string | undefined, { json }: { json?: boolean }) => {
      if (id === undefined) return json ? printJson(io, (await all()).map(described)) : listMethods(await all(), io);
      const method = await methodById(id);
      return json ? printJson(io, described(method)) : printMethod(method, io);
    });
}

const all = (): Promise<Method[]> => Promise.all(methodIds.map(methodById));

/** A method as machines read it; options are a JSON Schema of what may be given. */
const described = ({ id, family, title, paper, options, needs = [], waives = [] }: Method): Record<string, unknown> => ({
  id,
  family,
  title,
  paper,
  options: z.toJSONSchema(options, { io: "input", unrepresentable: "any" }),
  needs,
  waives,
});

function listMethods(methods: readonly Method[], io: Io): void {
  print(
    io,
    table(
      [{ title: "id" }, { title: "family" }, { title: "title" }, { title: "paper" }],
      methods.map(({ id, family, title, paper }) => [id, family, title, paper]),
    ),
  );
  print(io, `\n${coloured(io, "dim", "strut methods ID describes one and its options.")}`);
}

function printMethod({ id, family, title, paper, options, needs = [], waives = [] }: Method, io: Io): void {
  print(
    io,
    facts([
      ["id", id],
      ["title", title],
      ["family", family],
      ["paper", paper],
      ["needs", needs.length > 0 ? needs.join(", ") : undefined],
      ["waives", waives.length > 0 ? waives.map(({ law, because }) => `${law}: ${because}`).join("\n") : undefined],
    ]),
  );
  const described = Object.entries(options.shape).map(([name, option]): [string, string] => [`  ${name}`, (option as z.ZodType).description ?? ""]);
  if (described.length > 0) print(io, `\nOptions, under \`options\` in a recipe:\n${facts(described)}`);
}
