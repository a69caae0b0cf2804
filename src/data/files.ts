import { readText } from "../formats/files.ts";
import { textsOf, tokenStream, type Encoder } from "./text.ts";

/**
 * Reads a .txt or .jsonl file as one stream of tokens.
 *
 * @example
 * const { train, heldOut } = splitTail(await readTokens("data/text/tinyshakespeare.txt", tokenizer));
 */
export const readTokens = async (path: string, tokenizer: Encoder, { field }: { field?: string } = {}): Promise<Int32Array> =>
  tokenStream(tokenizer, textsOf(await readText(path), path, field));
