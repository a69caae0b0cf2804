import { StrutError } from "../errors.ts";

const escapes: Record<string, string> = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** JSON may nest this deep where a value is only skipped. */
const deepest = 64;

/**
 * Reads JSON strictly, one value at a time. Unlike `JSON.parse` it sees duplicate keys, refuses `__proto__` as a key,
 * refuses lone surrogates, and takes nothing but plain non-negative integers as numbers where an integer is asked for.
 */
export class JsonScanner {
  #at = 0;
  readonly #text: string;
  readonly #fail: (problem: string) => never;

  constructor(text: string, fail: (problem: string) => never) {
    this.#text = text;
    this.#fail = fail;
  }

  fail(problem: string): never {
    return this.#fail(`${problem} (character ${this.#at} of the JSON)`);
  }

  #space(): void {
    for (;;) {
      const c = this.#text.charCodeAt(this.#at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
      this.#at++;
    }
  }

  /** The next character after white space, not consumed; "" at the end. */
  #peek(): string {
    this.#space();
    return this.#text[this.#at] ?? "";
  }

  #found(): string {
    const rest = this.#text.slice(this.#at, this.#at + 20);
    return rest === "" ? "the end of the text" : JSON.stringify(rest);
  }

  #take(character: string, where: string): void {
    if (this.#peek() !== character) this.fail(`expected "${character}" ${where}, found ${this.#found()}`);
    this.#at++;
  }

  /** Nothing but white space may follow. */
  end(): void {
    if (this.#peek() !== "") this.fail(`expected nothing after the JSON object, found ${this.#found()}`);
  }

  /** Reads an object; `member` is called on each key and must read its value. */
  object(what: string, member: (key: string) => void): void {
    const seen = new Set<string>();
    this.#take("{", `where ${what} begins`);
    if (this.#peek() === "}") return void this.#at++;
    for (;;) {
      const key = this.string(`a key of ${what}`);
      if (key === "__proto__") this.fail(`the key "__proto__" is not allowed in ${what}`);
      if (seen.has(key)) this.fail(`the key ${JSON.stringify(key)} appears twice in ${what}`);
      seen.add(key);
      this.#take(":", `after the key ${JSON.stringify(key)}`);
      member(key);
      if (this.#peek() !== ",") break;
      this.#at++;
    }
    this.#take("}", `where ${what} ends`);
  }

  /** Reads an array of non-negative integers. */
  integers(what: string): number[] {
    const values: number[] = [];
    this.#take("[", `where ${what} begins`);
    if (this.#peek() === "]") {
      this.#at++;
      return values;
    }
    for (;;) {
      values.push(this.#integer(what));
      if (this.#peek() !== ",") break;
      this.#at++;
    }
    this.#take("]", `where ${what} ends`);
    return values;
  }

  #integer(what: string): number {
    this.#space();
    const start = this.#at;
    while (/[-+.0-9eE]/.test(this.#text[this.#at] ?? "")) this.#at++;
    const digits = this.#text.slice(start, this.#at);
    if (digits === "") this.fail(`expected a whole number in ${what}, found ${this.#found()}`);
    if (!/^(0|[1-9][0-9]*)$/.test(digits)) this.fail(`expected a plain whole number of 0 or more in ${what}, found ${digits.slice(0, 40)}`);
    const value = Number(digits);
    if (!Number.isSafeInteger(value)) this.fail(`the number ${digits.slice(0, 40)} in ${what} is beyond 2^53 - 1`);
    return value;
  }

  string(what: string): string {
    if (this.#peek() !== '"') this.fail(`expected a string as ${what}, found ${this.#found()}`);
    this.#at++;
    let value = "";
    let plain = this.#at;
    for (;;) {
      const code = this.#text.charCodeAt(this.#at);
      if (Number.isNaN(code)) this.fail(`the string of ${what} does not end`);
      if (code < 0x20) this.fail(`a control character stands unescaped in ${what}`);
      if (code === 0x22) {
        value += this.#text.slice(plain, this.#at++);
        break;
      }
      if (code !== 0x5c) {
        this.#at++;
        continue;
      }
      value += this.#text.slice(plain, this.#at++);
      value += this.#escape(what);
      plain = this.#at;
    }
    if (/\p{Surrogate}/u.test(value)) this.fail(`${what} holds half of a surrogate pair, which is not valid Unicode`);
    return value;
  }

  #escape(what: string): string {
    const letter = this.#text[this.#at++] ?? "";
    const simple = Object.hasOwn(escapes, letter) ? escapes[letter] : undefined;
    if (simple !== undefined) return simple;
    const digits = this.#text.slice(this.#at, this.#at + 4);
    if (letter !== "u" || !/^[0-9a-fA-F]{4}$/.test(digits))
      this.fail(`${what} holds the invalid escape ${JSON.stringify(`\\${letter}${letter === "u" ? digits : ""}`)}`);
    this.#at += 4;
    return String.fromCharCode(Number.parseInt(digits, 16));
  }

  /** Reads and drops any JSON value. */
  skip(what: string, depth = 0): void {
    if (depth > deepest) this.fail(`${what} nests deeper than ${deepest} levels`);
    const next = this.#peek();
    if (next === "{") return this.object(what, () => this.skip(what, depth + 1));
    if (next === '"') return void this.string(what);
    if (next !== "[") {
      const literal = /(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)/y;
      literal.lastIndex = this.#at;
      if (!literal.test(this.#text)) this.fail(`expected a JSON value in ${what}, found ${this.#found()}`);
      this.#at = literal.lastIndex;
      return;
    }
    this.#at++;
    if (this.#peek() === "]") return void this.#at++;
    for (;;) {
      this.skip(what, depth + 1);
      if (this.#peek() !== ",") break;
      this.#at++;
    }
    this.#take("]", `where a list in ${what} ends`);
  }
}

/** Decodes UTF-8 strictly; a byte-order mark stays and so is refused by whoever reads on. */
export function strictText(bytes: Uint8Array, fail: (problem: string, cause?: unknown) => StrutError): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw fail("the text is not valid UTF-8", cause);
  }
}
