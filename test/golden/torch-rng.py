"""Makes torch-rng.json: random numbers of torch's CPU generator (run with torch 2.13)."""

import json

import torch

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SIZES = [1, 15, 16, 17, 100, 1000]


def kept(n):
    """The places of which the file holds the numbers."""
    return [i for i in range(n) if n <= 17 or i < 2 or i % 37 == 0 or i >= n - 9]


def bits(x):
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16).long()


def short(x):
    return [float(f"{v:.9g}") for v in x.double()[kept(x.numel())].tolist()]


def exact(x):
    return {"values": short(x), "sum": int(bits(x).sum()) % 2**32}


cases = []
for seed in [0, 42, 2**40 + 5]:
    for size in SIZES:
        case = {"seed": seed, "size": size}
        for name, dtype in TYPES.items():
            torch.manual_seed(seed)
            case[f"rand {name}"] = exact(torch.rand(size, dtype=dtype))
            case[f"uniform {name}"] = exact(torch.empty(size, dtype=dtype).uniform_(-0.3, 1.7))
            torch.manual_seed(seed)
            case[f"normal {name}"] = short(torch.empty(size, dtype=dtype).normal_(0.5, 2))
            case[f"after {name}"] = short(torch.randn(3))
        torch.manual_seed(seed)
        case["randint"] = torch.randint(-5, 1000, (size,))[kept(size)].tolist()
        case["randint long"] = torch.randint(2**28, (size,))[kept(size)].tolist()
        case["randperm"] = torch.randperm(size)[kept(size)].tolist()
        cases.append(case)

kaiming = []
for shape in [[4, 7], [3, 1, 5], [2, 3, 3, 3]]:
    for a in [0, 5**0.5]:
        for name, dtype in TYPES.items():
            torch.manual_seed(1)
            x = torch.nn.init.kaiming_uniform_(torch.empty(shape, dtype=dtype), a=a)
            kaiming.append({"shape": shape, "a": a, "dtype": name, **exact(x.flatten())})

print(json.dumps({"torch": torch.__version__.split("+")[0], "cases": cases, "kaiming": kaiming}, separators=(",", ":")))
