"""Opens what strut wrote (write.mjs) with the real PEFT and transformers and compares logits and losses.
usage: python test/interop/python/check.py OUT > test/interop/python/record.json"""
import json, os, sys, warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import peft, torch, transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

transformers.logging.set_verbosity_error()
out = sys.argv[1]
strut = json.load(open(os.path.join(out, "strut.json")))
load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
results, worst = {}, 0.0

for name, case in strut.items():
    if name == "evaluation":
        continue
    ids, want = torch.tensor([case["ids"]]), torch.tensor(case["logits"]).view(case["shape"])
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(load(f"data/lm/{case['base']}"), os.path.join(out, name, "adapter")).eval()
        row = {"peft": float((adapted(input_ids=ids).logits - want).abs().max())}
        row["transformers_merged"] = float((load(os.path.join(out, name, "merged"))(input_ids=ids).logits - want).abs().max())
        notes = sorted({str(w.message).split("\n")[0][:160] for w in caught if issubclass(w.category, UserWarning)})
        if notes:
            row["warnings"] = notes
    results[name] = row
    worst = max(worst, row["peft"], row["transformers_merged"])

e = strut["evaluation"]
model, total, count = load(f"data/lm/{e['base']}"), 0.0, 0
with torch.no_grad():
    for start in range(0, len(e["held"]), e["window"]):
        x = torch.tensor([e["held"][start:start + e["window"]]])
        if x.shape[1] < 2:
            continue
        logits = model(input_ids=x).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="sum"))
        count += x.shape[1] - 1
evaluation = {"window": e["window"], "tokens": count, "strut": e["loss"], "transformers": total / count, "difference": abs(e["loss"] - total / count)}
print(json.dumps({"versions": {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__}, "largest_logit_difference": worst,
                  "evaluation_of_shakespeare_last_tenth": evaluation, "cases": results}, indent=1))
assert worst < 1e-4 and evaluation["difference"] < 1e-3 and count == e["tokens"]
