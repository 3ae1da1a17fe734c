"""A Vision Transformer whose parameters and gradients are two flat buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import timm
import torch
from torch import Tensor, nn

from engine.cost.flops import flops

CLASSES = 1000
ARCHITECTURES = {"ViT-S": "vit_small_patch16_224", "ViT-B": "vit_base_patch16_224"}


@dataclass(frozen=True)
class FlatViT:
    """net: parameters and gradients are views of theta and grad, fp32 [P]. Of one image: flops of a
    forward and backward pass, forward_flops of the former alone."""

    net: nn.Module
    kind: str
    theta: Tensor
    grad: Tensor
    images: Tensor
    labels: Tensor
    flops: float
    forward_flops: float

    @property
    def batch(self) -> int:
        return len(self.images)

    def at_most(self, images: int) -> FlatViT:
        """The same model with the first images only."""
        return replace(self, images=self.images[:images], labels=self.labels[:images])


def build(device: torch.device, quick: bool, kind: str = "ViT-S", images: int = 256) -> FlatViT:
    """A ViT/16 at 224 px with 1000 classes; quick: a toy of 64 px with 8 images at most."""
    torch.manual_seed(0)
    if quick:
        kind, size, images = "toy ViT", 64, min(images, 8)
        net = timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2, num_classes=CLASSES)
    else:
        size = 224
        net = timm.create_model(ARCHITECTURES[kind], num_classes=CLASSES)
    image = torch.randn(1, 3, size, size)
    forward_flops = flops(lambda: net(image))
    both_flops = flops(lambda: net(image).sum().backward())
    net = net.to(device).eval()
    parameters = list(net.parameters())
    theta = torch.cat([p.detach().flatten() for p in parameters])
    grad = torch.zeros_like(theta)
    sizes = [p.numel() for p in parameters]
    for p, value, slot in zip(parameters, theta.split(sizes), grad.split(sizes), strict=True):
        p.data = value.view_as(p)
        p.grad = slot.view_as(p)
    x = torch.randn(images, 3, size, size, device=device)
    y = torch.randint(CLASSES, (images,), device=device)
    return FlatViT(net, kind, theta, grad, x, y, both_flops, forward_flops)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on CUDA, for ours and peers alike; fp32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
