import { StrutError } from "../errors.ts";
import { fileError } from "../formats/files.ts";

const sentence = (text: string): string => {
  const trimmed = text.trimEnd();
  return /[.!?:…]$|\n/.test(trimmed) ? trimmed : `${trimmed}.`;
};

/** The errors that systems and engines throw, as sentences of ours; others stay unexpected. */
function known(error: unknown): StrutError | undefined {
  if (error instanceof StrutError) return error;
  const { code, path, syscall, message } = (error ?? {}) as NodeJS.ErrnoException;
  if (typeof code === "string" && syscall !== undefined && path !== undefined)
    return fileError(error, path, ["read", "stat", "lstat", "scandir"].includes(syscall) ? "read" : "write");
  if (error instanceof RangeError && /allocation|array length|memory/i.test(message))
    return new StrutError("memory", `there is not enough memory (${message})`, {
      hint: "Use shorter windows, smaller batches or a smaller model.",
      cause: error,
    });
  return undefined;
}

/**
 * An error as a person reads it: what is wrong, and below, what to do. `debug` adds where it happened.
 *
 * @example
 * errorText(new StrutError("rank", "rank 0 is not possible here", { hint: "Use a rank of at least 1." }));
 */
export function errorText(error: unknown, { debug = false }: { debug?: boolean } = {}): string {
  const ours = known(error);
  const message = ours?.message ?? `something unexpected went wrong: ${error instanceof Error ? error.message : String(error)}`;
  const hint = ours ? ours.hint : debug ? undefined : "Run it again with STRUT_DEBUG=1 to see where; please report it.";
  const lines = [sentence(message), ...(hint ? [sentence(hint)] : [])].flatMap((part) => part.split("\n"));
  const stack = debug && error instanceof Error ? `\n${error.stack}` : "";
  return `strut: ${lines.join("\n       ")}${stack}\n`;
}
