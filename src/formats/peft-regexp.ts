import { StrutError } from "../errors.ts";

/** Where one match stands: text, groups found so far, steps left. */
interface Run {
  readonly text: string;
  readonly groups: (readonly [start: number, end: number] | undefined)[];
  steps: number;
}
type Next = (at: number) => boolean;
type Matcher = (run: Run, at: number, next: Next) => boolean;
type Test = (character: string) => boolean;

/** A compiled Python pattern; `match` is `re.match`, `fullmatch` is `re.fullmatch`. */
export interface PythonPattern {
  /** The named groups, or undefined where the text does not match from its start. */
  readonly match: (text: string) => Readonly<Record<string, string>> | undefined;
  readonly fullmatch: (text: string) => boolean;
}

const MAX_PATTERN = 20_000;
const MAX_TEXT = 1_000;
const MAX_STEPS = 2_000_000;

const CLASSES: Readonly<Record<string, Test>> = {
  d: (c) => /\p{Nd}/u.test(c),
  w: (c) => /[\p{L}\p{N}_]/u.test(c),
  s: (c) => /\s/u.test(c),
  D: (c) => !/\p{Nd}/u.test(c),
  W: (c) => !/[\p{L}\p{N}_]/u.test(c),
  S: (c) => !/\s/u.test(c),
};
const CONTROLS: Readonly<Record<string, string>> = { a: "\x07", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t", v: "\v" };

const isWord = (run: Run, at: number): boolean => at >= 0 && at < run.text.length && CLASSES["w"]!(run.text[at]!);
const boundary = (run: Run, at: number): boolean => isWord(run, at - 1) !== isWord(run, at);

const assert =
  (holds: (run: Run, at: number) => boolean): Matcher =>
  (run, at, next) =>
    holds(run, at) && next(at);

const one =
  (test: Test): Matcher =>
  (run, at, next) =>
    at < run.text.length && test(run.text[at]!) && next(at + 1);

const sequence =
  (items: readonly Matcher[]): Matcher =>
  (run, at, next) =>
    items.reduceRight<Next>((rest, item) => (position) => item(run, position, rest), next)(at);

const either =
  (options: readonly Matcher[]): Matcher =>
  (run, at, next) =>
    options.some((option) => option(run, at, next));

const capture =
  (index: number, body: Matcher): Matcher =>
  (run, at, next) =>
    body(run, at, (end) => {
      const before = run.groups[index];
      run.groups[index] = [at, end];
      if (next(end)) return true;
      run.groups[index] = before;
      return false;
    });

const atomic =
  (body: Matcher): Matcher =>
  (run, at, next) => {
    let end = -1;
    return body(run, at, (found) => ((end = found), true)) && next(end);
  };

const repeat =
  (body: Matcher, least: number, most: number, lazy: boolean): Matcher =>
  (run, at, next) => {
    const from = (count: number, position: number): boolean => {
      if (--run.steps < 0) throw new RangeError("steps");
      const more = (): boolean => count < most && body(run, position, (end) => (end !== position || count < least) && from(count + 1, end));
      if (count < least) return more();
      return lazy ? next(position) || more() : more() || next(position);
    };
    return from(0, at);
  };

class Parser {
  private at = 0;
  private groups = 0;
  readonly names = new Map<string, number>();
  private ignoreCase = false;
  private dotAll = false;
  private readonly source: string;
  private readonly what: string;
  constructor(source: string, what: string) {
    this.source = source;
    this.what = what;
  }

  parse(): Matcher {
    const flags = /^\(\?([a-zA-Z]+)\)/.exec(this.source);
    if (flags) {
      this.at = flags[0].length;
      this.setFlags(flags[1]!);
    }
    const whole = this.alternatives();
    if (this.at < this.source.length) this.refuse("has an unbalanced parenthesis");
    return whole;
  }

  refuse(problem: string): never {
    throw new StrutError("peft-pattern", `${this.what} ${JSON.stringify(this.source)} ${problem}`, {
      hint: "Patterns are Python regular expressions over module names, such as model.layers.0.self_attn.q_proj.",
    });
  }

  private eat(text: string): boolean {
    const there = this.source.startsWith(text, this.at);
    if (there) this.at += text.length;
    return there;
  }

  private take(pattern: RegExp): RegExpExecArray | undefined {
    const sticky = new RegExp(pattern.source, "y");
    sticky.lastIndex = this.at;
    const found = sticky.exec(this.source) ?? undefined;
    if (found) this.at += found[0].length;
    return found;
  }

  private alternatives(): Matcher {
    const options = [this.items()];
    while (this.eat("|")) options.push(this.items());
    return options.length === 1 ? options[0]! : either(options);
  }

  private items(): Matcher {
    const items: Matcher[] = [];
    while (this.at < this.source.length && !"|)".includes(this.source[this.at]!)) items.push(this.quantified());
    return sequence(items);
  }

  private quantified(): Matcher {
    if (/[*+?]/.test(this.source[this.at]!)) this.refuse(`has nothing to repeat at position ${this.at}`);
    let matcher = this.atom();
    const times = this.take(/([*+?])|\{(\d*)(,?)(\d*)\}/);
    if (!times) return matcher;
    if (times[0] === "{}" || times[0] === "{,}") {
      // Python: "{}" is two letters, "{,}" is any number of times.
      if (times[0] === "{}") return sequence([matcher, this.literal("{"), this.literal("}")]);
    }
    const [least, most] = times[1]
      ? [times[1] === "+" ? 1 : 0, times[1] === "?" ? 1 : Infinity]
      : [Number(times[2] || 0), times[4] ? Number(times[4]) : times[3] ? Infinity : Number(times[2])];
    if (most < least) this.refuse(`repeats at least ${least} and at most ${most} times`);
    matcher = this.eat("+") ? atomic(repeat(matcher, least, most, false)) : repeat(matcher, least, most, this.eat("?"));
    if (this.take(/[*+?]|\{\d+(?:,\d*)?\}|\{,\d+\}/)) this.refuse("repeats a repetition");
    return matcher;
  }

  private literal(character: string): Matcher {
    return one(this.sameCase((c) => c === character));
  }

  private sameCase(test: Test): Test {
    return this.ignoreCase ? (c) => test(c) || test(c.toLowerCase()) || test(c.toUpperCase()) : test;
  }

  private atom(): Matcher {
    const character = this.source[this.at++]!;
    if (character === "(") return this.group();
    if (character === "[") return one(this.sameCase(this.set()));
    if (character === ".") return one(this.dotAll ? () => true : (c) => c !== "\n");
    if (character === "^") return assert((_, at) => at === 0);
    if (character === "$") return assert(({ text }, at) => at === text.length || (at === text.length - 1 && text[at] === "\n"));
    return character === "\\" ? this.escape() : this.literal(character);
  }

  private escape(): Matcher {
    if (this.eat("A")) return assert((_, at) => at === 0);
    if (this.eat("Z")) return assert(({ text }, at) => at === text.length);
    if (this.eat("b")) return assert(boundary);
    if (this.eat("B")) return assert((run, at) => !boundary(run, at));
    const reference = this.take(/[1-9]\d?/);
    if (reference) return this.reference(Number(reference[0]));
    const found = this.escapedCharacter();
    return typeof found === "string" ? this.literal(found) : one(found);
  }

  private escapedCharacter(): string | Test {
    const set = this.take(/[dwsDWS]/);
    if (set) return CLASSES[set[0]]!;
    const code = this.take(/x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})/);
    if (code) return String.fromCharCode(parseInt((code[1] ?? code[2])!, 16));
    const octal = this.take(/[0-7]{1,3}/);
    if (octal) return String.fromCharCode(parseInt(octal[0], 8));
    const character = this.source[this.at++] ?? this.refuse("ends in a backslash");
    if (CONTROLS[character]) return CONTROLS[character];
    if (/[a-zA-Z0-9]/.test(character)) this.refuse(`uses \\${character}, which Python patterns do not have`);
    return character;
  }

  private set(): Test {
    const negated = this.eat("^");
    const tests: Test[] = [];
    const member = (): string | Test => {
      const character = this.source[this.at++] ?? this.refuse("has a [ without its ]");
      return character === "\\" ? this.escapedCharacter() : character;
    };
    do {
      const low = member();
      const range = this.source[this.at] === "-" && !["]", undefined].includes(this.source[this.at + 1]);
      if (!range) tests.push(typeof low === "string" ? (c) => c === low : low);
      else {
        this.at++;
        const high = member();
        if (typeof low !== "string" || typeof high !== "string" || low > high) this.refuse("has a bad range in [ ]");
        else tests.push((c) => c >= low && c <= high);
      }
    } while (!this.eat("]"));
    return negated ? (c) => !tests.some((test) => test(c)) : (c) => tests.some((test) => test(c));
  }

  private group(): Matcher {
    if (!this.eat("?")) return this.captured(++this.groups);
    const named = this.take(/P<([A-Za-z_]\w*)>/);
    if (named) {
      if (this.names.has(named[1]!)) this.refuse(`names the group "${named[1]}" twice`);
      this.names.set(named[1]!, ++this.groups);
      return this.captured(this.groups);
    }
    const back = this.take(/P=([A-Za-z_]\w*)\)/);
    if (back) return this.reference(this.names.get(back[1]!) ?? this.refuse(`refers to the unknown group "${back[1]}"`));
    if (this.take(/#[^)]*\)/)) return sequence([]);
    if (this.eat(":")) return this.closed();
    if (this.eat(">")) return atomic(this.closed());
    const look = this.take(/(<?)([=!])/);
    if (look) return this.look(look[1] === "<", look[2] === "!");
    const flags = this.take(/([a-zA-Z]*)(?:-([a-z]+))?:/);
    if (flags) return this.flagged(flags[1]!, flags[2] ?? "");
    return this.refuse(`uses (?${this.source.slice(this.at, this.at + 2)}, which strut does not read`);
  }

  private captured(index: number): Matcher {
    return capture(index, this.closed());
  }

  private closed(): Matcher {
    const { ignoreCase, dotAll } = this;
    const body = this.alternatives();
    if (!this.eat(")")) this.refuse("has a ( without its )");
    this.ignoreCase = ignoreCase;
    this.dotAll = dotAll;
    return body;
  }

  private look(behind: boolean, negated: boolean): Matcher {
    const body = this.closed();
    const starts = (run: Run, at: number): boolean => {
      for (let start = at; start >= 0; start--) if (body(run, start, (end) => end === at)) return true;
      return false;
    };
    return assert((run, at) => (behind ? starts(run, at) : body(run, at, () => true)) !== negated);
  }

  private reference(index: number): Matcher {
    if (index > this.groups) this.refuse(`refers to group ${index}, which it does not have`);
    return (run, at, next) => {
      const found = run.groups[index];
      if (!found) return false;
      const text = run.text.slice(...found);
      return run.text.startsWith(text, at) && next(at + text.length);
    };
  }

  private flagged(on: string, off: string): Matcher {
    const { ignoreCase, dotAll } = this;
    this.setFlags(on);
    if (off.includes("i")) this.ignoreCase = false;
    if (off.includes("s")) this.dotAll = false;
    const body = this.closed();
    this.ignoreCase = ignoreCase;
    this.dotAll = dotAll;
    return body;
  }

  /** Module names have one line of plain text, so `m`, `a` and `u` change nothing. */
  private setFlags(flags: string): void {
    if (/[^aimsu]/.test(flags)) this.refuse(`uses the flags "${flags}", of which strut reads a, i, m, s and u`);
    this.ignoreCase ||= flags.includes("i");
    this.dotAll ||= flags.includes("s");
  }
}

/**
 * Compiles a Python regular expression as PEFT would (`re.match`, `re.fullmatch`). JavaScript's own RegExp is not
 * used: its syntax differs, and a pattern that came with a file must not be able to hang the reader, so every match
 * has a budget of steps.
 *
 * @example
 * pythonPattern(".*\\.(0|2)\\.self_attn\\.q_proj", "target_modules").fullmatch("model.layers.2.self_attn.q_proj"); // true
 */
export function pythonPattern(source: string, what: string): PythonPattern {
  if (source.length > MAX_PATTERN)
    throw new StrutError("peft-pattern", `${what} has a pattern of ${source.length} characters; at most ${MAX_PATTERN} are read`);
  const parser = new Parser(source, what);
  const matcher = parser.parse();
  const run = (text: string, accept: (end: number) => boolean): Run | undefined => {
    if (text.length > MAX_TEXT) parser.refuse(`is asked about a name of ${text.length} characters; at most ${MAX_TEXT} are matched`);
    const state: Run = { text, groups: [], steps: MAX_STEPS };
    try {
      return matcher(state, 0, accept) ? state : undefined;
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return parser.refuse(`takes too many steps on ${JSON.stringify(text.slice(0, 80))}`);
    }
  };
  return {
    match(text) {
      const state = run(text, () => true);
      if (!state) return undefined;
      return Object.fromEntries(
        [...parser.names].flatMap(([name, index]) => {
          const found = state.groups[index];
          return found ? [[name, text.slice(...found)]] : [];
        }),
      );
    },
    fullmatch: (text) => run(text, (end) => end === text.length) !== undefined,
  };
}
