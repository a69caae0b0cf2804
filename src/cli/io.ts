import type { Engine } from "../tensor/index.ts";

export interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
}

/** What a command sees of the world, so that tests can run it in their own process. */
export interface Io {
  readonly stdout: Output;
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** A signal that Ctrl-C fires; asking for it means that the command ends by itself then. */
  interrupt(): AbortSignal;
}

/** Whether lines may move and be coloured: on a terminal, outside CI. */
export const isLively = ({ stdout, env }: Io): boolean => stdout.isTTY === true && !env["CI"] && env["TERM"] !== "dumb";

const codes = { bold: [1, 22], dim: [2, 22], green: [32, 39], cyan: [36, 39] } as const;

type Style = keyof typeof codes;

/** Text with a colour, where colours are wanted. */
export function coloured(io: Io, style: Style, text: string): string {
  if (!isLively(io) || io.env["NO_COLOR"]) return text;
  const [on, off] = codes[style];
  return `\u001b[${on}m${text}\u001b[${off}m`;
}

export const print = (io: Io, text: string): void => void io.stdout.write(`${text}\n`);

/** One JSON object on a line of its own. */
export const printJson = (io: Io, value: unknown): void => print(io, JSON.stringify(value));

/** A line that is written over in place on a terminal. */
export class StatusLine {
  readonly #io: Io;
  #shown = false;

  constructor(io: Io) {
    this.#io = io;
  }

  show(text: string, style?: Style): void {
    if (!isLively(this.#io)) return;
    const width = (this.#io.stdout.columns ?? 80) - 1;
    const fitting = text.slice(0, width);
    this.#io.stdout.write(`\r\u001b[2K${style ? coloured(this.#io, style, fitting) : fitting}`);
    this.#shown = true;
  }

  /** Takes the line away. */
  clear(): void {
    if (this.#shown) this.#io.stdout.write("\r\u001b[2K");
    this.#shown = false;
  }
}

/** `native (avx512), 2 threads` */
export const backendText = ({ backend: { name, variant, threads } }: Engine): string =>
  `${name} (${variant}), ${threads} ${threads === 1 ? "thread" : "threads"}`;
