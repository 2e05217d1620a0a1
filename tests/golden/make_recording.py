#!/usr/bin/env python3
"""Iterations of DINOv2 pretraining in plain PyTorch, to check recordings and to make new ones (needs torch and numpy).

  make_recording.py --check DIR...
      runs the recorded iterations in DIR again, from its init and batch files, and prints the largest relative
      difference of each kind. The official recordings in tests/data/golden hold this program to the published code.
  make_recording.py --out DIR [KEY=VALUE...] [--iterations N] [--seed N] [--compared-only]
      writes a recording with random weights and pixels, in the format that replay_step reads. KEYs are those of the
      published configuration ("student.patch_size=16"), and embed_dim, depth and num_heads of "student", which stand
      for an architecture here. VALUEs are JSON, or text.

It computes in float64, so that its own rounding does not count; --float32 computes as the published code does.
Written for reading next to the paper: images pass one resolution at a time, every score and target is materialised,
nothing is fused, packed or distributed.
"""
import argparse
import json
import math
import pathlib
import random
import struct

import numpy
import torch
from torch.nn import functional

# The keys of the published configuration that an iteration depends on; sizes are tiny.
DEFAULTS = {
    "student": {"arch": "recording", "embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 14,
                "drop_path_rate": 0.0, "drop_path_uniform": True, "layerscale": 1e-5, "ffn_layer": "mlp",
                "qkv_bias": True, "proj_bias": True, "ffn_bias": True, "block_chunks": 0,
                "num_register_tokens": 0, "interpolate_antialias": False, "interpolate_offset": 0.1},
    "teacher": {"momentum_teacher": 0.992, "final_momentum_teacher": 1, "warmup_teacher_temp": 0.04,
                "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30},
    "dino": {"loss_weight": 1.0, "head_n_prototypes": 64, "head_bottleneck_dim": 16, "head_nlayers": 3,
             "head_hidden_dim": 48, "koleo_loss_weight": 0.1},
    "ibot": {"loss_weight": 1.0, "mask_sample_probability": 0.5, "mask_ratio_min_max": [0.1, 0.5],
             "separate_head": False, "head_n_prototypes": 64, "head_bottleneck_dim": 16, "head_nlayers": 3,
             "head_hidden_dim": 48},
    "train": {"batch_size_per_gpu": 4, "OFFICIAL_EPOCH_LENGTH": 1250, "centering": "centering"},
    "optim": {"epochs": 100, "weight_decay": 0.04, "weight_decay_end": 0.4, "base_lr": 0.02, "warmup_epochs": 10,
              "min_lr": 1e-6, "clip_grad": 3.0, "freeze_last_layer_epochs": 1, "patch_embed_lr_mult": 0.2,
              "layerwise_decay": 0.9, "adamw_beta1": 0.9, "adamw_beta2": 0.999},
    "crops": {"local_crops_number": 8, "global_crops_size": 56, "local_crops_size": 28},
}
STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9
TYPES = {"F64": numpy.float64, "F32": numpy.float32, "F16": numpy.float16, "I64": numpy.int64, "U8": numpy.uint8,
         "BOOL": numpy.bool_}


# Files

def read_safetensors(path):
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    tensors = {}
    for name, entry in json.loads(raw[8:8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            values = numpy.frombuffer(raw[begin:end], TYPES[entry["dtype"]])
            tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return tensors


def write_safetensors(path, tensors):
    names = {numpy.dtype(kind): name for name, kind in TYPES.items()}
    header, data = {}, b""
    arrays = [(name, numpy.array(tensor.detach().contiguous().numpy(), order="C")) for name, tensor in tensors.items()]
    for name, array in sorted(arrays, key=lambda entry: -entry[1].itemsize):  # so that all are aligned
        begin, data = len(data), data + array.tobytes()
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def stored(tensors):
    """As recordings hold them: numbers in float32."""
    return {name: t.detach().float() if t.is_floating_point() else t for name, t in tensors.items()}


# Networks: a dictionary of parameters each, "backbone.cls_token", ..., "dino_head.mlp.0.weight", ...

def block_names(config):
    """Prefixes of the blocks. In chunks the first number is that of the chunk, the second counts all blocks."""
    depth, chunks = config["student"]["depth"], config["student"]["block_chunks"]
    return [f"backbone.blocks.{i // (depth // chunks)}.{i}" if chunks else f"backbone.blocks.{i}" for i in range(depth)]


def is_swiglu(config):
    return config["student"]["ffn_layer"] != "mlp"


def head_layers(options, prefix):
    """Names of the linear layers of a head: GELUs lie between them in the published list; a single layer is no list."""
    count = max(1, options["head_nlayers"])
    return [f"{prefix}.mlp" if count == 1 else f"{prefix}.mlp.{2 * i}" for i in range(count)]


def parameter_shapes(config):
    student, shapes = config["student"], {}
    dim, patch = student["embed_dim"], student["patch_size"]
    grid = config["crops"]["global_crops_size"] // patch
    shapes["backbone.cls_token"] = (1, 1, dim)
    shapes["backbone.pos_embed"] = (1, 1 + grid * grid, dim)
    if student["num_register_tokens"]:
        shapes["backbone.register_tokens"] = (1, student["num_register_tokens"], dim)
    shapes["backbone.mask_token"] = (1, dim)

    def linear(name, outputs, inputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    shapes["backbone.patch_embed.proj.weight"] = (dim, 3, patch, patch)
    shapes["backbone.patch_embed.proj.bias"] = (dim,)
    for block in block_names(config):
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * dim, dim, student["qkv_bias"])
        linear(f"{block}.attn.proj", dim, dim, student["proj_bias"])
        if student["layerscale"]:
            shapes[f"{block}.ls1.gamma"] = (dim,)
        norm(f"{block}.norm2")
        if is_swiglu(config):
            hidden = (4 * dim * 2 // 3 + 7) // 8 * 8
            linear(f"{block}.mlp.w12", 2 * hidden, dim, student["ffn_bias"])
            linear(f"{block}.mlp.w3", dim, hidden, student["ffn_bias"])
        else:
            linear(f"{block}.mlp.fc1", 4 * dim, dim, student["ffn_bias"])
            linear(f"{block}.mlp.fc2", dim, 4 * dim, student["ffn_bias"])
        if student["layerscale"]:
            shapes[f"{block}.ls2.gamma"] = (dim,)
    norm("backbone.norm")

    separate = config["ibot"]["separate_head"] and config["ibot"]["loss_weight"]
    for prefix, options in [("dino_head", config["dino"])] + ([("ibot_head", config["ibot"])] if separate else []):
        inputs, layers = dim, head_layers(options, prefix)
        for name in layers:
            outputs = options["head_bottleneck_dim"] if name == layers[-1] else options["head_hidden_dim"]
            linear(name, outputs, inputs)
            inputs = outputs
        shapes[f"{prefix}.last_layer.weight_g"] = (options["head_n_prototypes"], 1)
        shapes[f"{prefix}.last_layer.weight_v"] = (options["head_n_prototypes"], options["head_bottleneck_dim"])
    return shapes


def random_weights(config, generator):
    """Far from initial values, so that no part of the network drops out of sight."""
    weights = {}
    for name, shape in parameter_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("gamma") or name.endswith("weight_g"):
            weights[name] = 0.7 + 0.3 * noise.clamp(-2, 2)
        elif "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            weights[name] = 0.2 * noise
        elif name.endswith("weight"):
            weights[name] = noise * math.prod(shape[1:]) ** -0.5
        else:
            weights[name] = 0.5 * noise
    return weights


def positions(w, config, height, width):
    student, pos = config["student"], w["backbone.pos_embed"]
    side, dim = math.isqrt(pos.shape[1] - 1), pos.shape[2]
    if height * width == side * side and height == width:
        return pos
    grid = pos[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
    if student["interpolate_offset"]:
        offset = student["interpolate_offset"]
        size = {"scale_factor": ((height + offset) / side, (width + offset) / side)}
    else:
        size = {"size": (height, width)}
    grid = functional.interpolate(grid, mode="bicubic", antialias=student["interpolate_antialias"], **size)
    return torch.cat([pos[:, :1], grid.permute(0, 2, 3, 1).reshape(1, height * width, dim)], 1)


def add_branch(x, branch, gamma, kept):
    """Stochastic depth: the branch works on the rows that are kept, and weighs as much as if it had them all."""
    if kept is None:
        return x + gamma * branch(x)
    return x.index_add(0, kept, gamma * branch(x[kept]) * (len(x) / len(kept)))


def backbone(w, config, images, masks=None, kept=None):
    """images [B, 3, H, W]; masks bool [B, N]; kept: rows of each branch, or None for all."""
    student = config["student"]
    dim, heads, patch = student["embed_dim"], student["num_heads"], student["patch_size"]
    registers = student["num_register_tokens"]

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return functional.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def attention(x, block):
        batch, tokens, _ = x.shape
        q, k, v = linear(x, f"{block}.attn.qkv").view(batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) * (dim // heads) ** -0.5
        mixed = scores.softmax(-1) @ v
        return linear(mixed.transpose(1, 2).reshape(batch, tokens, dim), f"{block}.attn.proj")

    def feed_forward(x, block):
        if is_swiglu(config):
            gate, value = linear(x, f"{block}.mlp.w12").chunk(2, -1)
            return linear(functional.silu(gate) * value, f"{block}.mlp.w3")
        return linear(functional.gelu(linear(x, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")

    embedding = "backbone.patch_embed.proj"
    x = functional.conv2d(images, w[f"{embedding}.weight"], w[f"{embedding}.bias"], stride=patch)
    height, width = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    if masks is not None:
        x = torch.where(masks[:, :, None], w["backbone.mask_token"][:, None], x)
    x = torch.cat([w["backbone.cls_token"].expand(len(x), 1, dim), x], 1) + positions(w, config, height, width)
    if registers:
        x = torch.cat([x[:, :1], w["backbone.register_tokens"].expand(len(x), registers, dim), x[:, 1:]], 1)
    for i, block in enumerate(block_names(config)):
        first, second = kept[2 * i:2 * i + 2] if kept else (None, None)
        gamma1, gamma2 = (w.get(f"{block}.ls{n}.gamma", 1) for n in (1, 2))
        x = add_branch(x, lambda t: attention(norm(t, f"{block}.norm1"), block), gamma1, first)
        x = add_branch(x, lambda t: feed_forward(norm(t, f"{block}.norm2"), block), gamma2, second)
    y = norm(x, "backbone.norm")
    return {"x_norm_clstoken": y[:, 0], "x_norm_regtokens": y[:, 1:1 + registers],
            "x_norm_patchtokens": y[:, 1 + registers:], "x_prenorm": x}


def head(w, options, prefix, x):
    for i, name in enumerate(head_layers(options, prefix)):
        x = functional.linear(functional.gelu(x) if i else x, w[f"{name}.weight"], w[f"{name}.bias"])
    x = functional.normalize(x, eps=1e-12)
    direction = w[f"{prefix}.last_layer.weight_v"]
    return x @ (w[f"{prefix}.last_layer.weight_g"] * direction / direction.norm(dim=1, keepdim=True)).t()


def both_heads(w, config, cls, patches, upperbound):
    """Scores of class tokens and masked patches, and what goes in and out: patches are padded to `upperbound` rows, and
    pass through the DINO head together with the class tokens unless they have a head of their own."""
    trace, count = {}, len(patches)

    def through(name, x):
        trace[f"{name}.in"], trace[f"{name}.0.out"] = x, head(w, config[name.removesuffix("_head")], name, x)
        return trace[f"{name}.0.out"]

    if not config["ibot"]["loss_weight"]:
        return through("dino_head", cls), None, trace
    padded = torch.cat([patches, patches.new_zeros(upperbound - count, patches.shape[1])])
    if config["ibot"]["separate_head"]:
        return through("dino_head", cls), through("ibot_head", padded)[:count], trace
    scores = through("dino_head", torch.cat([cls, padded]))
    return scores[:len(cls)], scores[len(cls):len(cls) + count], trace


# Targets and losses

def sinkhorn_knopp(scores, temperature):
    q = (scores / temperature).exp().t()  # [K, n]
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


class Center:
    """Its batch mean is folded in when the next batch is centred."""

    def __init__(self, value):
        self.value, self.pending = value, None

    def targets(self, scores, temperature):
        if self.pending is not None:
            self.value = self.value * CENTER_MOMENTUM + self.pending.view_as(self.value) * (1 - CENTER_MOMENTUM)
        self.pending = scores.mean(0)
        return ((scores - self.value.flatten()) / temperature).softmax(-1)


def cross_entropy(targets, scores):
    return -(targets * (scores / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1)


def koleo(x):
    x = functional.normalize(x, eps=1e-8)
    similarity = (x @ x.t()).detach().fill_diagonal_(-1)
    distance = (x - x[similarity.argmax(1)] + 1e-8).norm(dim=1)
    return -(distance + 1e-8).log().mean()


class Run:
    """Student, teacher, centres and the moments of AdamW, and the iterations that move them."""

    def __init__(self, config, init, kind):
        self.config, self.kind, self.steps = config, kind, 0

        def part(prefix):
            return {n.removeprefix(prefix): t.to(kind, copy=True) for n, t in init.items() if n.startswith(prefix)}

        self.student, self.teacher = part("student."), part("teacher.")
        # A loss that has no weight has no centre either.
        self.centers = {n: Center(t.to(kind)) for n, t in init.items() if n.endswith("_loss.center")}
        self.moments = {n: (torch.zeros_like(t), torch.zeros_like(t)) for n, t in self.student.items()}
        for tensor in self.student.values():
            tensor.requires_grad_(True)

    def state(self):
        networks = (("student", self.student), ("teacher", self.teacher))
        weights = {f"{network}.{n}": t for network, tensors in networks for n, t in tensors.items()}
        return stored(weights | {n: c.value for n, c in self.centers.items()})

    def kept(self, batch, resolution):
        """Rows of each branch for resolution 0 (global) or 1 (local). Blocks that never drop record none."""
        recorded = 0
        rows = []
        resolutions = 2 if len(batch["collated_local_crops"]) else 1
        for rate in drop_rates(self.config):
            for _ in range(2):
                rows.append(batch[f"brange_{recorded + resolution:04}"] if rate else None)
                recorded += resolutions if rate else 0
        return rows

    @torch.no_grad()
    def targets(self, batch, temperature):
        """Targets of class tokens (the second crops' first, as the students of the first crops see them) and masked
        patches."""
        config = self.config
        tokens = backbone(self.teacher, config, batch["collated_global_crops"].to(self.kind))
        first, second = tokens["x_norm_clstoken"].chunk(2)
        patches = tokens["x_norm_patchtokens"].flatten(0, 1)[batch["mask_indices_list"]]
        cls_scores, patch_scores, trace = both_heads(self.teacher, config, torch.cat([second, first]), patches,
                                                     int(batch["upperbound"]))
        trace |= {f"backbone.0.{name}": t for name, t in tokens.items()}
        ibot = None
        if config["train"]["centering"] == "centering":
            dino = self.centers["dino_loss.center"].targets(cls_scores, temperature)
            if patch_scores is not None:
                ibot = self.centers["ibot_patch_loss.center"].targets(patch_scores, temperature)
        else:
            dino = sinkhorn_knopp(cls_scores, temperature)
            if patch_scores is not None:
                ibot = sinkhorn_knopp(patch_scores, temperature)
        trace["dino_targets"] = dino
        if ibot is not None:
            trace["ibot_targets"] = ibot
        return dino, ibot, {f"teacher.{name}": t for name, t in trace.items()}

    def losses(self, batch, temperature):
        config, crops, locals_ = self.config, batch["collated_global_crops"], batch["collated_local_crops"]
        dino_targets, ibot_targets, trace = self.targets(batch, temperature)
        images, count = len(crops) // 2, config["crops"]["local_crops_number"]
        masks = batch["collated_masks"].bool()
        tokens = backbone(self.student, config, crops.to(self.kind), masks, self.kept(batch, 0))
        trace |= {f"student.backbone.0.{name}": t for name, t in tokens.items()}
        global_cls = tokens["x_norm_clstoken"]
        cls = [global_cls]
        if count:
            local_tokens = backbone(self.student, config, locals_.to(self.kind), None, self.kept(batch, 1))
            trace |= {f"student.backbone.1.{name}": t for name, t in local_tokens.items()}
            cls.insert(0, local_tokens["x_norm_clstoken"])
        patches = tokens["x_norm_patchtokens"].flatten(0, 1)[batch["mask_indices_list"]]
        scores, patch_scores, heads = both_heads(self.student, config, torch.cat(cls), patches,
                                                 int(batch["upperbound"]))
        trace |= {f"student.{name}": t for name, t in heads.items()}

        # Every local crop against both teacher crops, every global one against the other; each pair weighs the same.
        # (The published code does not run without local crops.)
        pairs = 2 + 2 * count
        local_scores, global_scores = scores[:count * images], scores[count * images:]
        dino_local = sum((cross_entropy(t, s).mean() for s in local_scores.split(images) for t in dino_targets.chunk(2)
                          if len(s)), scores.new_zeros(())) / pairs
        dino_global = cross_entropy(dino_targets, global_scores).mean() * 2 / pairs
        displayed = {"dino_local_crops_loss": dino_local, "dino_global_crops_loss": dino_global}
        total = config["dino"]["loss_weight"] * (dino_local + dino_global)
        if config["dino"]["koleo_loss_weight"]:
            weighted = config["dino"]["koleo_loss_weight"] * sum(koleo(x) for x in global_cls.chunk(2))
            displayed["koleo_loss"] = weighted / 2
            total = total + weighted
        if config["ibot"]["loss_weight"]:
            weight = batch["masks_weight"].to(self.kind)  # one over the masked patches of the image
            ibot = (cross_entropy(ibot_targets, patch_scores) * weight).sum() / (2 * images)
            displayed["ibot_loss"] = ibot / 2
            total = total + config["ibot"]["loss_weight"] * ibot
        return total, {name: value.item() for name, value in displayed.items()}, trace

    def iteration(self, batch, schedule):
        """Returns what is recorded of it: numbers, activations, gradients."""
        for tensor in self.student.values():
            tensor.grad = None
        total, displayed, trace = self.losses(batch, schedule["teacher_temp"])
        total.backward()
        gradients = {name: t.grad.clone() for name, t in self.student.items()}
        numbers = {"losses": displayed, "total_loss": total.item(),
                   "grad_norms": {name: g.norm().item() for name, g in gradients.items()}}
        with torch.no_grad():
            numbers["clip_norms"] = self.update(gradients, schedule)
        return numbers, stored(trace), stored(gradients)

    def update(self, gradients, schedule):
        optim, norms = self.config["optim"], {}
        for name in gradients:
            norms.setdefault(name.split(".")[0], []).append(gradients[name].norm() ** 2)
        norms = {submodule: sum(squares).sqrt().item() for submodule, squares in norms.items()}
        self.steps += 1
        beta1, beta2 = optim["adamw_beta1"], optim["adamw_beta2"]
        for group in parameter_groups(self.config, self.student):
            lr = group["lr_multiplier"] * schedule["last_layer_lr" if group["is_last_layer"] else "lr"]
            for name in group["params"]:
                gradient = gradients[name]
                if optim["clip_grad"]:  # each sub-module for itself
                    gradient = gradient * min(1, optim["clip_grad"] / (norms[name.split(".")[0]] + 1e-6))
                mean, square = self.moments[name]
                mean.mul_(beta1).add_(gradient * (1 - beta1))
                square.mul_(beta2).add_(gradient**2 * (1 - beta2))
                step = mean / (1 - beta1**self.steps) / ((square / (1 - beta2**self.steps)).sqrt() + 1e-8)
                values = self.student[name]
                values.mul_(1 - lr * group["wd_multiplier"] * schedule["wd"]).sub_(lr * step)
        for name, values in self.teacher.items():
            values.mul_(schedule["mom"]).add_(self.student[name] * (1 - schedule["mom"]))
        return norms if optim["clip_grad"] else {}


# What the configuration says about an iteration

def parameter_groups(config, names):
    """Parameters with the same multipliers. Layers count from the embedding (0) over the blocks to the last norm."""
    optim, depth, groups = config["optim"], config["student"]["depth"], {}
    for name in names:
        layer = depth + 1
        if name.startswith("backbone.blocks."):
            layer = 1 + max(i for i, block in enumerate(block_names(config)) if name.startswith(f"{block}."))
        elif name.startswith("backbone.") and not name.startswith("backbone.norm."):
            layer = 0
        lr = optim["layerwise_decay"] ** (depth + 1 - layer)
        if "patch_embed" in name:
            lr *= optim["patch_embed_lr_mult"]
        decays = not (name.endswith(".bias") or "norm" in name or "gamma" in name)
        key = (name.split(".")[0], lr, float(decays), "last_layer" in name)
        groups.setdefault(key, []).append(name)
    return [{"lr_multiplier": lr, "wd_multiplier": wd, "is_last_layer": last, "params": params}
            for (_, lr, wd, last), params in groups.items()]


def drop_rates(config):
    rate, depth = config["student"]["drop_path_rate"], config["student"]["depth"]
    if config["student"]["drop_path_uniform"]:
        return [rate] * depth
    return [rate * i / (depth - 1) if depth > 1 else 0.0 for i in range(depth)]


def schedule_values(config, iteration):
    optim, teacher, epoch = config["optim"], config["teacher"], config["train"]["OFFICIAL_EPOCH_LENGTH"]
    total = optim["epochs"] * epoch

    def cosine(base, final, warmup=0):
        if iteration < warmup:
            return base * iteration / (warmup - 1)
        return final + (base - final) / 2 * (1 + math.cos(math.pi * (iteration - warmup) / (total - warmup)))

    lr = cosine(optim["lr"], optim["min_lr"], optim["warmup_epochs"] * epoch)
    start, end, warmup = teacher["warmup_teacher_temp"], teacher["teacher_temp"], teacher["warmup_teacher_temp_epochs"]
    return {"lr": lr, "wd": cosine(optim["weight_decay"], optim["weight_decay_end"]),
            "mom": cosine(teacher["momentum_teacher"], teacher["final_momentum_teacher"]),
            "teacher_temp": start + (end - start) * min(1, iteration / max(1, warmup * epoch - 1)),
            "last_layer_lr": 0.0 if iteration < optim["freeze_last_layer_epochs"] * epoch else lr}


# Random batches

def block_mask(grid, wanted, largest, rng):
    mask = numpy.zeros((grid, grid), bool)
    while mask.sum() < wanted:
        budget = min(wanted - mask.sum(), largest)
        for _ in range(10):
            area = rng.uniform(4, budget)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= grid or width >= grid:
                continue
            top, left = rng.randint(0, grid - height), rng.randint(0, grid - width)
            block = mask[top:top + height, left:left + width]
            if 0 < block.size - block.sum() <= budget:
                block[:] = True
                break
        else:
            break
    return mask


def random_batch(config, rng, generator):
    crops, ibot, images = config["crops"], config["ibot"], config["train"]["batch_size_per_gpu"]
    count, size, patch = crops["local_crops_number"], crops["global_crops_size"], config["student"]["patch_size"]
    grid = size // patch

    def pixels(rows, side):
        # Images that differ in more than noise, rounded as the published code rounds pixels.
        noise = torch.randn(rows, 3, side, side, generator=generator)
        return (noise + torch.randn(rows, 3, 1, 1, generator=generator)).half().float()

    masked = int(2 * images * ibot["mask_sample_probability"])
    edges = numpy.linspace(*ibot["mask_ratio_min_max"], masked + 1)
    masks = [block_mask(grid, int(grid * grid * rng.uniform(low, high)), size // 2 // patch * size // patch, rng)
             for low, high in zip(edges, edges[1:])]
    masks += [numpy.zeros((grid, grid), bool)] * (2 * images - masked)
    rng.shuffle(masks)
    masks = torch.from_numpy(numpy.stack(masks)).flatten(1)
    per_image = masks.sum(1, keepdim=True).clamp(min=1)
    batch = {"collated_global_crops": pixels(2 * images, size),
             "collated_local_crops": pixels(count * images, crops["local_crops_size"]),
             "collated_masks": masks.to(torch.uint8),
             "mask_indices_list": masks.flatten().nonzero().flatten(),
             "masks_weight": (1 / per_image).expand_as(masks)[masks].float(),
             "n_masked_patches": masks.sum().reshape(1),
             "upperbound": torch.tensor(sum(int(grid * grid * high) for high in edges[1:]))}
    subsets = [(rate, rows) for rate in drop_rates(config) for _ in range(2)
               for rows in (2 * images, count * images) if rate and rows]
    for i, (rate, rows) in enumerate(subsets):
        batch[f"brange_{i:04}"] = torch.randperm(rows, generator=generator)[:max(int(rows * (1 - rate)), 1)]
    return batch


# The two uses

def complete_config(config, init):
    """Adds what an architecture's name stands for, from the shapes; two heads, as the tiny networks recorded have."""
    student = config["student"]
    student["embed_dim"] = len(init["student.backbone.norm.weight"])
    student["depth"] = sum(name.startswith("student.") and name.endswith(".norm1.weight") for name in init)
    student.setdefault("num_heads", 2)


def difference(ours, theirs, rounding=0.0):
    ours, theirs = ours.double().flatten(), theirs.double().flatten()
    distance = max(0.0, (ours - theirs).norm().item() - rounding)
    return distance and distance / theirs.norm().item()


def without_key_bias(name, tensor):
    """Key biases have no gradient mathematically, only rounding noise, of which AdamW makes full steps."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    q, _, v = tensor.chunk(3)
    return torch.cat([q, v])


def check(folder, kind):
    meta = json.loads((folder / "meta.json").read_text())
    init = read_safetensors(folder / "init.safetensors")
    complete_config(meta["config"], init)
    run, worst = Run(meta["config"], init, kind), {}

    def compare(what, name, value):
        worst[what] = max(worst.get(what, (0.0, "nothing")), (value, name))

    def relative(ours, theirs):
        return abs(ours - theirs) / abs(theirs) if ours != theirs else 0.0

    def recorded(what, number):
        path = folder / f"{what}_{number:04}.safetensors"
        return read_safetensors(path) if path.exists() else {}

    for number, theirs in enumerate(meta["iterations"]):
        batch = recorded("batch", number)
        if not batch:
            break
        batch.setdefault("collated_local_crops", batch["collated_global_crops"][:0])
        for name, value in schedule_values(meta["config"], theirs["iteration"]).items():
            compare("schedule", f"{name} [{number}]", relative(value, theirs[name]))
        ours, activations, gradients = run.iteration(batch, theirs)
        for name, value in recorded("acts", number).items():
            what = "feature" if ".backbone." in name else "head"
            compare(what, f"{name} [{number}]", difference(activations[name], value))
        for name, value in theirs["losses"].items() | {("total_loss", theirs["total_loss"])}:
            compare("loss", f"{name} [{number}]", relative((ours["losses"] | ours)[name], value))
        for name, value in theirs.get("clip_norms", {}).items():
            compare("norm", f"{name} [{number}]", relative(ours["clip_norms"][name], value))
        for name, value in recorded("grads", number).items():
            compare("gradient", f"{name} [{number}]",
                    difference(without_key_bias(name, gradients[name]), without_key_bias(name, value)))
        state = run.state()
        for name, value in recorded("state", number + 1).items():
            if name.endswith(".center"):
                compare("center", f"{name} [{number}]", difference(state[name], value))
            else:
                before = init[name].double()
                change, their_change = (without_key_bias(name, t - before) for t in (state[name], value))
                # A teacher's small change drowns in the rounding of what it changes.
                rounding = 1e-7 * before.norm().item()
                compare(f"change of {name.split('.')[0]}", f"{name} [{number}]",
                        difference(change, their_change, rounding))
    if recorded_groups := meta.get("param_groups"):
        def listed(groups):
            return {n: (round(g["lr_multiplier"], 12), g["wd_multiplier"], g["is_last_layer"]) for g in groups
                    for n in g["params"]}
        same = listed(parameter_groups(meta["config"], run.student)) == listed(recorded_groups)
        compare("multipliers", "all" if same else "differ", 0.0 if same else math.inf)
    print(folder)
    for what, (value, name) in worst.items():
        print(f"  {what:18} {value:.2e}  {name}")


def record(folder, config, options, kind):
    rng, generator = random.Random(options.seed), torch.Generator().manual_seed(options.seed)
    student, teacher = random_weights(config, generator), random_weights(config, generator)
    init = {f"student.{n}": t for n, t in student.items()}
    # A teacher that resembles the student, as an average of it does.
    init |= {f"teacher.{n}": 0.8 * student[n] + 0.2 * t for n, t in teacher.items()}
    prototypes = {"dino_loss.center": (1, config["dino"]["head_n_prototypes"])}
    if config["ibot"]["loss_weight"]:
        head_of_patches = config["ibot" if config["ibot"]["separate_head"] else "dino"]
        prototypes["ibot_patch_loss.center"] = (1, 1, head_of_patches["head_n_prototypes"])
    init |= {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in prototypes.items()}

    def write(what, tensors):
        write_safetensors(folder / f"{what}.safetensors", tensors)

    def read_by_replay(name):
        return name.split(".")[-1] in ("x_norm_clstoken", "x_norm_patchtokens", "x_norm_regtokens")

    folder.mkdir(parents=True, exist_ok=True)
    write("init", init)
    run, iterations = Run(config, init, kind), []
    for number in range(options.iterations):
        batch = random_batch(config, rng, generator)
        schedule = schedule_values(config, options.first_iteration + number)
        numbers, activations, gradients = run.iteration(batch, schedule)
        iterations.append({"iteration": options.first_iteration + number, **schedule, **numbers,
                           "n_masked": int(batch["n_masked_patches"]), "upperbound": int(batch["upperbound"])})
        if not config["crops"]["local_crops_number"]:
            del batch["collated_local_crops"]
        if options.compared_only:
            activations = {n: t for n, t in activations.items() if read_by_replay(n)}
            batch = {n: t.half() if n.endswith("crops") else t for n, t in batch.items()}
        write(f"batch_{number:04}", batch)
        if number == 0 or not options.compared_only:
            write(f"acts_{number:04}", activations)
            write(f"grads_{number:04}", gradients)
        if number == options.iterations - 1 or not options.compared_only:
            write(f"state_{number + 1:04}", run.state())
    meta = {"source": "tests/golden/make_recording.py: plain PyTorch, not the official implementation",
            "seed": options.seed, "config": config, "iterations": iterations,
            "param_groups": parameter_groups(config, student)}
    (folder / "meta.json").write_text(json.dumps(meta) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--first-iteration", type=int, default=2000, help="where the schedules stand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compared-only", action="store_true",
                        help="keep recordings small: pixels in float16, and neither tensors in heads, nor activations "
                             "and gradients of other iterations than the first, nor states before the last")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    kind = torch.float32 if options.float32 else torch.float64
    for folder in options.check or []:
        check(folder, kind)
    if options.out:
        config = json.loads(json.dumps(DEFAULTS))
        for assignment in options.keys:
            key, _, text = assignment.partition("=")
            section, _, name = key.partition(".")
            if name not in config.get(section, {}):
                parser.error(f"there is no key {key}")
            try:
                config[section][name] = json.loads(text)
            except json.JSONDecodeError:
                config[section][name] = text
        config["optim"]["lr"] = config["optim"]["base_lr"] * math.sqrt(config["train"]["batch_size_per_gpu"] / 1024)
        record(options.out, config, options, kind)


if __name__ == "__main__":
    main()
