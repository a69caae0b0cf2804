import { StrutError, nearest } from "../errors.ts";

const qv = ["q_proj", "v_proj"];
const queryValue = ["query", "value"];
const fused = ["query_key_value"];

/** What PEFT 0.21 adapts with LoRA when `target_modules` is missing, by `model_type`. */
const LORA_TARGETS: Readonly<Record<string, readonly string[] | string>> = {
  bart: qv,
  bert: queryValue,
  "blip-2": ["q", "v", "q_proj", "v_proj"],
  bloom: fused,
  btlm: ["c_proj", "c_attn"],
  chatglm: fused,
  codegen: ["qkv_proj"],
  deberta: ["in_proj"],
  "deberta-v2": ["query_proj", "value_proj"],
  electra: queryValue,
  falcon: fused,
  gemma: qv,
  gemma2: qv,
  gemma3_text: qv,
  gemma4: ".*language_model\\..*\\.(q_proj|v_proj)",
  gpt2: ["c_attn"],
  gpt_bigcode: ["c_attn"],
  gpt_neo: qv,
  gpt_neox: fused,
  gptj: qv,
  layoutlm: queryValue,
  llama: qv,
  llama4: qv,
  mistral: qv,
  mixtral: qv,
  mpt: ["Wqkv"],
  mt5: ["q", "v"],
  nemotron_h: ["q_proj", "k_proj", "v_proj", "o_proj"],
  opt: qv,
  phi: ["q_proj", "v_proj", "fc1", "fc2"],
  qwen2: qv,
  qwen3: qv,
  RefinedWeb: fused,
  RefinedWebModel: fused,
  roberta: queryValue,
  rwkv: ["key", "value", "receptance", "output"],
  rwkv7: ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
  stablelm: qv,
  t5: ["q", "v"],
  "xlm-roberta": queryValue,
};

/** PEFT's default LoRA targets for a `model_type`: a list of names, or a pattern. */
export function defaultTargets(modelType: string | undefined): readonly string[] | string {
  const found = modelType !== undefined && Object.hasOwn(LORA_TARGETS, modelType) ? LORA_TARGETS[modelType] : undefined;
  if (found !== undefined) return found;
  const near = modelType === undefined ? [] : nearest(modelType, Object.keys(LORA_TARGETS), 1);
  throw new StrutError(
    "peft-targets",
    modelType === undefined
      ? "The adapter names no target_modules, and the model no model_type to look up PEFT's default by."
      : `The adapter names no target_modules, and PEFT has no default for model_type ${JSON.stringify(modelType)}.`,
    {
      path: "target_modules",
      hint: `Name the targets, for example "all-linear".${near.length > 0 ? ` PEFT has a default for ${JSON.stringify(near[0])}.` : ""}`,
    },
  );
}
