#!/usr/bin/env python3
"""The iteration of iteration.cpp, written plainly in PyTorch: eager, from the published recipe; in 16 bits by autocast.

The same sizes, options and protocol: an unmeasured iteration, then one for each line of standard input, with a JSON
object on standard output. tests/bench/iteration runs both in turn.
"""
import argparse
import copy
import json
import math
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

ARCHITECTURES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant2": (1536, 40, 24),
}
WIDTH, DEPTH, HEADS = ARCHITECTURES["vit_small"]  # main() chooses
PATCH, DROP_RATE = 16, 0.3
PROTOTYPES, HIDDEN, BOTTLENECK = 65536, 2048, 256
LOCAL_CROPS = 8
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
RATE, WEIGHT_DECAY, LAYERWISE_DECAY, MOMENTUM, CLIP = 1e-4, 0.04, 0.9, 0.992, 3.0


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        crops, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(crops, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(crops, tokens, WIDTH))


class SwiGlu(nn.Module):
    def __init__(self):
        super().__init__()
        hidden = (4 * WIDTH * 2 // 3 + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(WIDTH, 2 * hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, drop_rate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        if WIDTH == ARCHITECTURES["vit_giant2"][0]:
            self.mlp = SwiGlu()
        else:
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.ls1, self.ls2 = LayerScale(), LayerScale()
        self.drop_rate = drop_rate

    def add(self, x, branch):
        """x + branch(x) with stochastic depth: the branch works on a subset of the crops only."""
        if self.drop_rate == 0:
            return x + branch(x)
        crops = x.shape[0]
        kept = torch.randperm(crops, device=x.device)[: max(int(crops * (1 - self.drop_rate)), 1)]
        residual = branch(x.index_select(0, kept)).to(x.dtype)
        return torch.index_add(x.flatten(1), 0, kept, residual.flatten(1), alpha=crops / len(kept)).view_as(x)

    def forward(self, x):
        x = self.add(x, lambda x: self.ls1(self.attn(self.norm1(x))))
        return self.add(x, lambda x: self.ls2(self.mlp(self.norm2(x))))


def initialise(module):
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class VisionTransformer(nn.Module):
    def __init__(self, drop_rate):
        super().__init__()
        self.grid = 224 // PATCH
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 1e-6)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + self.grid**2, WIDTH), std=0.02))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.blocks = nn.ModuleList(Block(drop_rate) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.blocks.apply(initialise)

    def positions(self, side):
        if side == self.grid:
            return self.pos_embed
        square = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, WIDTH).permute(0, 3, 1, 2)
        scale = (side + 0.1) / self.grid
        square = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], square.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], 1)

    def forward(self, images, masks=None):
        """Class tokens [B, D] and patch tokens [B, N, D]."""
        x = self.patch_embed(images)
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.unsqueeze(0), x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions(side)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.mlp.apply(initialise)
        self.last_layer = nn.utils.parametrizations.weight_norm(nn.Linear(BOTTLENECK, PROTOTYPES, bias=False))
        nn.init.ones_(self.last_layer.parametrizations.weight.original0)

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, eps=1e-12))


class Center:
    """Softmax centring; a batch's mean counts from the next batch on."""

    def __init__(self):
        self.center = 0
        self.mean = None

    def __call__(self, logits):
        if self.mean is not None:
            self.center = self.center * 0.9 + self.mean * 0.1
        logits = logits.float()
        self.mean = logits.mean(0, keepdim=True)
        return F.softmax((logits - self.center) / TEACHER_TEMPERATURE, dim=-1)


def dino_loss(student, teacher):
    """Mean cross-entropy of every student crop with every teacher crop, summed over the pairs."""
    total = 0
    for s in student:
        log_p = F.log_softmax(s.float() / STUDENT_TEMPERATURE, dim=-1)
        for t in teacher:
            total = total - (t * log_p).sum(-1).mean()
    return total


def ibot_loss(student, teacher, masks):
    loss = (teacher * F.log_softmax(student.float() / STUDENT_TEMPERATURE, dim=-1)).sum(-1)
    weight = (1 / masks.sum(1).clamp(min=1)).unsqueeze(1).expand_as(masks)[masks]
    return -(loss * weight).sum() / len(masks)


def koleo_loss(features):
    if len(features) < 2:
        return features.sum() * 0
    x = F.normalize(features.float(), eps=1e-8)
    with torch.no_grad():
        similarity = (x @ x.T).fill_diagonal_(-1)
        nearest = similarity.argmax(1)
    return -torch.log(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).mean()


def parameter_groups(student):
    """Parameters by learning rate and weight decay: layer-wise rates, no decay of norms, biases and gammas."""
    groups = {}
    for name, parameter in student.named_parameters():
        rate = RATE
        if name.startswith("backbone."):
            parts = name.split(".")
            layer = int(parts[2]) + 1 if parts[1] == "blocks" else DEPTH + 1 if parts[1] == "norm" else 0
            rate *= LAYERWISE_DECAY ** (DEPTH + 1 - layer) * (0.2 if parts[1] == "patch_embed" else 1)
        decay = 0 if name.endswith(".bias") or "norm" in name or "gamma" in name else WEIGHT_DECAY
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def random_masks(images, patches):
    """Every second crop is masked, each by a fixed number of patches, as in iteration.cpp."""
    masks = torch.zeros(2 * images, patches, dtype=torch.bool)
    for i in range(images):
        masks[2 * i, torch.randperm(patches)[: int(patches * (0.1 + 0.4 * (i + 0.5) / images))]] = True
    return masks


class Training:
    def __init__(self, device, dtype):
        self.student = nn.ModuleDict({"backbone": VisionTransformer(DROP_RATE), "head": Head()}).to(device)
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for block in self.teacher["backbone"].blocks:
            block.drop_rate = 0
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student), betas=(0.9, 0.999), foreach=True)
        self.dino_center, self.ibot_center = Center(), Center()

    @torch.no_grad()
    def targets(self, global_crops, masks):
        cls, patches = self.teacher["backbone"](global_crops)
        first, second = cls.chunk(2)
        # Swapped: the student's first crop meets the teacher's second.
        logits = self.teacher["head"](torch.cat([second, first, patches[masks]]))
        return self.dino_center(logits[: len(cls)]), self.ibot_center(logits[len(cls) :])

    def loss(self, global_crops, local_crops, masks):
        dino_targets, ibot_targets = self.targets(global_crops, masks)

        global_cls, patches = self.student["backbone"](global_crops, masks)
        local_cls, _ = self.student["backbone"](local_crops)
        tokens = torch.cat([local_cls, global_cls, patches[masks]])
        sizes = [len(local_cls), len(global_cls), len(tokens) - len(local_cls) - len(global_cls)]
        local_logits, global_logits, patch_logits = self.student["head"](tokens).split(sizes)

        terms = 2 + 2 * LOCAL_CROPS
        loss = dino_loss(local_logits.chunk(LOCAL_CROPS), dino_targets.chunk(2)) / terms
        loss = loss + dino_loss([global_logits], [dino_targets]) * 2 / terms
        loss = loss + ibot_loss(patch_logits, ibot_targets, masks)
        return loss + 0.1 * sum(koleo_loss(crop) for crop in global_cls.chunk(2))

    def step(self, global_crops, local_crops, masks):
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.loss(global_crops, local_crops, masks)
        self.scaler.scale(loss).backward()

        self.scaler.unscale_(self.optimizer)
        for module in self.student.values():
            nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
            torch._foreach_mul_(teacher, MOMENTUM)
            torch._foreach_add_(teacher, student, alpha=1 - MOMENTUM)
        return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="vit_small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help='set_float32_matmul_precision("medium")')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    if arguments.fast:
        torch.set_float32_matmul_precision("medium")
    torch.manual_seed(0)
    global WIDTH, DEPTH, HEADS
    WIDTH, DEPTH, HEADS = ARCHITECTURES[arguments.arch]
    device = arguments.device
    training = Training(device, getattr(torch, arguments.precision))
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None

    def iterate():
        n = arguments.images
        inputs = [
            torch.randn(2 * n, 3, 224, 224).to(device),
            torch.randn(LOCAL_CROPS * n, 3, 96, 96).to(device),
            random_masks(n, (224 // PATCH) ** 2).to(device),
        ]
        synchronise()
        begin = time.perf_counter()
        loss = training.step(*inputs)
        synchronise()
        return time.perf_counter() - begin, loss

    iterate()
    for _ in sys.stdin:
        seconds, loss = iterate()
        if not math.isfinite(loss):
            sys.exit("error: the loss is not finite.")
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": round(seconds, 4), "peak_bytes": peak, "loss": round(loss, 4)}), flush=True)


if __name__ == "__main__":
    main()
