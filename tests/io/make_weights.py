"""Writes tests/data/weights: small files as torch.save makes them. Needs torch; run it only to add a fixture.

    python3 tests/io/make_weights.py tests/data/weights
"""
import sys
from collections import OrderedDict
from pathlib import Path

import torch

out = Path(sys.argv[1])


def values(*shape, dtype=torch.float32, start=0):
    return (torch.arange(start, start + torch.Size(shape).numel()).reshape(shape) / 8).to(dtype)


# A module's own state_dict (it carries `_metadata`), of every type, with a view, shared values and a parameter.
module = torch.nn.Module()
module.child = torch.nn.Linear(3, 2)
module.child.weight.data = values(2, 3)
module.child.bias.data = values(2, start=6)
for dtype in torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8:
    module.register_buffer("of_" + str(dtype).split(".")[1], values(2, dtype=dtype, start=8))
module.register_buffer("flags", torch.tensor([True, False, True]))
module.register_buffer("scalar", torch.tensor(2.5))
module.register_buffer("empty", torch.zeros(0, 4))
module.register_buffer("transposed", values(3, 4).t())
module.register_buffer("part", module.transposed[1:3, 2])
module.register_buffer("tied", module.child.weight.data)
state = module.state_dict()
assert state._metadata
torch.save(state, out / "state_dict.pth")
torch.save(state, out / "protocol4.pth", pickle_protocol=4)
torch.save(state, out / "former.pth", _use_new_zipfile_serialization=False)
torch.save(OrderedDict(weight=torch.nn.Parameter(values(2))), out / "parameter.pth")
torch.save(module, out / "module.pth")
torch.save([values(2)], out / "list.pth")
torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), out / "program.pt")

# As training writes its teacher: on a GPU, blocks in chunks, with heads; and beside an optimiser.
dim, grid, patch = 8, 2, 2
backbone = OrderedDict(cls_token=values(1, 1, dim), pos_embed=values(1, 1 + grid * grid, dim), mask_token=values(1, dim))
backbone["patch_embed.proj.weight"] = values(dim, 3, patch, patch)
backbone["patch_embed.proj.bias"] = values(dim)
for block in range(2):
    for name, shape in {"norm1.weight": [dim], "norm1.bias": [dim], "attn.qkv.weight": [3 * dim, dim], "attn.qkv.bias": [3 * dim],
                        "attn.proj.weight": [dim, dim], "attn.proj.bias": [dim], "ls1.gamma": [dim], "norm2.weight": [dim],
                        "norm2.bias": [dim], "mlp.fc1.weight": [2 * dim, dim], "mlp.fc1.bias": [2 * dim],
                        "mlp.fc2.weight": [dim, 2 * dim], "mlp.fc2.bias": [dim], "ls2.gamma": [dim]}.items():
        backbone[f"blocks.{block}.{block}.{name}"] = values(*shape, start=block)
backbone["norm.weight"], backbone["norm.bias"] = values(dim), values(dim)
half = {name: tensor.half() for name, tensor in backbone.items()}
torch.serialization.location_tag = lambda storage: "cuda:0"
teacher = {"backbone." + name: tensor for name, tensor in half.items()} | {"dino_head.mlp.0.weight": values(2, dim)}
torch.save({"teacher": teacher}, out / "teacher_checkpoint.pth")
torch.save({"model": {"module." + name: tensor for name, tensor in backbone.items()},
            "optimizer": {"state": {0: {"step": 3, "exp_avg": values(2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
            "iteration": 1 << 40}, out / "model.pth")
