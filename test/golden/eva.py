"""eva.json: what PEFT's EVA gives on stories260K, and its incremental PCA on small numbers. python eva.py STORIES260K OUT"""
import json
import sys

import peft.tuners.lora.eva as eva
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.utils.incremental_pca import IncrementalPCA
from transformers import AutoModelForCausalLM

base, out = sys.argv[1:]
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(7)
ids = [torch.randint(3, 512, (4, 32), generator=generator) for _ in range(6)]
lengths = torch.tensor([32, 20, 27, 9])
mask = (torch.arange(32)[None] < lengths[:, None]).long()
labels = [torch.where(torch.arange(32)[None] < 6, -100, x) for x in ids]


def short(x, digits=7):
    return [short(row, digits) for row in x] if x.ndim > 1 else [float(f"%.{digits}g" % value) for value in x]


def case(targets, batches, r=4, alpha=8, rho=2.0, tau=0.99, whiten=False, adjust=True, lowrank=False, components=False, **patterns):
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, init_lora_weights="eva", task_type="CAUSAL_LM", **patterns,
                        eva_config=EvaConfig(rho=rho, tau=tau, whiten=whiten, adjust_scaling_factors=adjust))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    hooks = []
    begin = eva.SVDHook.__init__

    def watched(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.svd.lowrank = lowrank
        hooks.append(self)

    eva.SVDHook.__init__ = watched
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    eva.SVDHook.__init__ = begin
    kept = model.peft_config["default"]
    ranks = {name.replace("base_model.model.", ""): module.r["default"] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    found = {"ranks": ranks, "rank_pattern": kept.rank_pattern, "alpha_pattern": kept.alpha_pattern, "target_modules": sorted(kept.target_modules),
             "rows": {hook.name.replace("base_model.model.", ""): int(hook.svd.n_samples_seen_) for hook in hooks},
             "ratios": {hook.name.replace("base_model.model.", ""): short(hook.svd.explained_variance_ratio_) for hook in hooks}}
    if components:
        found["A"] = {name: short(model.get_submodule("base_model.model." + name).lora_A["default"].weight.detach(), 6) for name in ranks}
    return found


plain = [{"input_ids": x} for x in ids]
masked = [{"input_ids": x, "attention_mask": mask, "labels": y} for x, y in zip(ids, labels)]
qv, all_linear = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
x = torch.randn(3, 12, 6, generator=generator) * torch.tensor([3.0, 2.2, 1.5, 1.0, 0.6, 0.3]) + torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 0.0])
pca = IncrementalPCA(n_components=3)
for batch in x:
    pca.partial_fit(batch)
golden = {
    "made_by": "torch 2.13.0, transformers 5.18.0, peft 0.21.0, f32, one thread; exact SVDs unless `lowrank`",
    "pca": {"x": short(x), "components": short(pca.components_), "singularValues": short(pca.singular_values_),
            "ratios": short(pca.explained_variance_ratio_), "mean": short(pca.mean_)},
    "ids": [x.tolist() for x in ids],
    "mask": mask.tolist(),
    "labels": [x.tolist() for x in labels],
    "cases": {
        "plain": case(qv, plain, components=True),
        "lowrank": case(qv, plain, lowrank=True),
        "masked": case(qv, masked),
        # q alone: PEFT divides in place, so that the members of a group divide the rows that they share once each
        "whitened": case(["q_proj"], plain, rho=1.0, whiten=True, components=True),
        "patterns": case(["q_proj", "k_proj", "v_proj"], plain, rho=1.5, rank_pattern={"layers.1.self_attn.q_proj": 7}, alpha_pattern={"v_proj": 4}, adjust=False),
        "scaled": case(["q_proj", "k_proj", "v_proj"], plain, rho=1.5, rank_pattern={"layers.1.self_attn.q_proj": 7}, alpha_pattern={"v_proj": 4}),
        "odd": case(qv, plain, rank_pattern={"layers.0.self_attn.q_proj": 5}),
        "all-linear": case(all_linear, plain, r=2),
    },
}
json.dump(golden, open(out, "w"), separators=(",", ":"))
for name, found in golden["cases"].items():
    print(name, list(found["ranks"].values()), found["target_modules"], list(found["rows"].values())[:12])
