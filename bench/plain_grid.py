"""A cell of the grid as a plain PyTorch script makes it: the peer of `python -m bench grid`.

    python bench/plain_grid.py --data images --sets upstream twemoji noto-v1 --downstream twemoji \\
        --method ewc --arch tf_efficientnet_lite0 --weights pre.safetensors --out cells

It trains a model on one set with one method, evaluates it on every set, and writes weights and
accuracies below `--out`. It does what the benchmark's released code does: a process a cell; every
image decoded from its file whenever a model sees it, by the worker processes of a DataLoader; LwF's
teacher in every step; a pass over a set for each model. As there, the pre-trained model is a cell
too (`--method pre`), LP-FT, WiSE-FT (alpha 0.5) and soups load the cells that they are made of,
which must be finished, EWC has no Fisher and LwF no T^2.

It needs no part of the engine. Batches come in the order of NumPy's generator, seeded by the epoch,
so that another program can train on the same ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

MOMENTUM, TEMPERATURE = 0.9, 2.0
ALPHA = 0.5
SOUP = ("fine_tune", "ewc", "lwf")  # and the pre-trained model
State = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, logits and labels


class Cell:
    """What a method works with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.start: State = load_file(args.weights)

    def network(self, state: State) -> nn.Module:
        """A network with these weights, in evaluation mode."""
        net = timm.create_model(
            self.args.arch, num_classes=len(self.data(self.args.sets[0]).classes)
        )
        net.load_state_dict(state)
        return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def transform(self) -> Any:
        """timm's evaluation transform, in which the benchmark also trains."""
        known = timm.get_pretrained_cfg(self.args.arch)
        config = resolve_data_config(pretrained_cfg=known.to_dict() if known else {})
        return create_transform(
            self.args.image_size,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=self.args.crop or config["crop_pct"],
        )

    def data(self, name: str) -> ImageFolder:
        return ImageFolder(str(self.args.data / name), self.transform)

    def batches(
        self, name: str, order: np.ndarray | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images [B, 3, H, W] and labels [B] of a set."""
        order = np.arange(len(self.data(name))) if order is None else order
        loader = DataLoader(
            self.data(name),
            self.args.batch_size,
            sampler=order.tolist(),
            num_workers=self.args.workers,
        )
        for x, y in loader:
            yield x.contiguous(memory_format=torch.channels_last), y

    def folder(self, method: str) -> Path:
        return self.args.out / f"{method}-{self.args.downstream}"

    def finished(self, method: str) -> State:
        """The weights of another method's cell on the same set."""
        return load_file(self.folder(method) / "weights.safetensors")


def pre(cell: Cell) -> State:
    return cell.start


def fine_tune(cell: Cell) -> State:
    return train(cell, cell.network(cell.start), lambda x, logits, y: F.cross_entropy(logits, y))


def linear_probe(cell: Cell) -> State:
    net = cell.network(cell.start).requires_grad_(False)
    net.get_classifier().requires_grad_(True)  # type: ignore[operator]
    return train(cell, net, lambda x, logits, y: F.cross_entropy(logits, y), frozen=True)


def lp_ft(cell: Cell) -> State:
    net = cell.network(cell.finished("linear_probe"))
    return train(cell, net, lambda x, logits, y: F.cross_entropy(logits, y))


def ewc(cell: Cell) -> State:
    net = cell.network(cell.start)
    anchor = {name: p.detach().clone() for name, p in net.named_parameters()}

    def loss(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        moved = (((p - anchor[n]) ** 2).sum() for n, p in net.named_parameters())
        return F.cross_entropy(logits, y) + cell.args.lam * torch.stack(list(moved)).sum()

    return train(cell, net, loss)


def lwf(cell: Cell) -> State:
    teacher = cell.network(cell.start)

    def loss(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            before = teacher(x)
        log_q = F.log_softmax(logits / TEMPERATURE, dim=1)
        p = F.softmax(before / TEMPERATURE, dim=1)
        return F.cross_entropy(logits, y) + F.kl_div(log_q, p, reduction="batchmean")

    return train(cell, cell.network(cell.start), loss)


def wise_ft(cell: Cell) -> State:
    return mixed([(1 - ALPHA, cell.start), (ALPHA, cell.finished("fine_tune"))])


def soup(cell: Cell) -> State:
    members = [cell.start, *map(cell.finished, SOUP)]
    return mixed([(1 / len(members), state) for state in members])


def mixed(parts: list[tuple[float, State]]) -> State:
    """A weighted mean of models; integers, such as BatchNorm's count, are those of the first."""
    first = parts[0][1]
    return {
        name: sum(weight * state[name] for weight, state in parts)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }  # type: ignore[return-value]


METHODS = {f.__name__: f for f in (pre, fine_tune, linear_probe, ewc, lwf, lp_ft, wise_ft, soup)}


def train(cell: Cell, net: nn.Module, loss_of: Loss, frozen: bool = False) -> State:
    """SGD with a linear warm-up and half a cosine; BatchNorm's statistics stay as they were.

    frozen: the network stays in evaluation mode, since only its head learns.
    """
    args, images = cell.args, len(cell.data(cell.args.downstream))
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, args.lr, MOMENTUM, fused=True)
    total = math.ceil(images / args.batch_size) * args.epochs
    step = 0
    net.train(not frozen)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for epoch in range(args.epochs):
        order = np.random.default_rng([args.seed, epoch]).permutation(images)
        for x, y in cell.batches(args.downstream, order):
            optimizer.param_groups[0]["lr"] = learning_rate(step, total, args.lr)
            optimizer.zero_grad()
            loss_of(x, net(x), y).backward()
            optimizer.step()
            step += 1
    state = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    cell.folder(args.method).mkdir(parents=True)
    save_file(state, cell.folder(args.method) / "weights.safetensors")
    return state


def learning_rate(step: int, total: int, base: float) -> float:
    warmup = total // 10
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@torch.no_grad()
def evaluate(cell: Cell, state: State) -> dict[str, float]:
    """Top-1 in percent on every set."""
    net, accuracy = cell.network(state), {}
    for name in cell.args.sets:
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in cell.batches(name))
        accuracy[name] = 100 * right / len(cell.data(name))
    return accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    cell = Cell(args)
    accuracy = evaluate(cell, METHODS[args.method](cell))
    cell.folder(args.method).mkdir(parents=True, exist_ok=True)
    (cell.folder(args.method) / "accuracy.json").write_text(json.dumps(accuracy, indent=1))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds SET/CLASS/IMAGE")
    parser.add_argument("--sets", nargs="+", required=True, help="evaluated; upstream comes first")
    parser.add_argument("--downstream", default="", help="the set to train on; none for `pre`")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--arch", required=True, help="timm's name")
    parser.add_argument("--weights", required=True, help="safetensors of the model with its head")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--crop", type=float, help="default: timm's of the architecture")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lam", type=float, default=1.0, help="EWC's strength")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
