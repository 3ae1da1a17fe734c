"""A cell of the grid as a plain PyTorch script makes it: the peer of `python -m bench grid`.

    python bench/plain_grid.py SETTINGS.json METHOD [DOWNSTREAM]

It trains a model on one set with one method, evaluates it on every set, and writes weights and
accuracies. It does what the benchmark's released code does: a process a cell; every image decoded
from its file whenever a model sees it, by a worker process of a DataLoader; LwF's teacher in every
step; a pass over a set for each model. As there, the pretrained model is a cell too (`pretrained`),
LP-FT, WiSE-FT (alpha 0.5) and soups load the cells that they are made of, which must be finished,
EWC has lambda 1 and no Fisher and LwF no T^2.

It needs no part of the engine. Batches come in the order of NumPy's generator, seeded by the epoch,
so that another program can train on the same ones. The settings, as JSON:

    images, cells     folders: of SET/CLASS/IMAGE, and of the results
    sets              evaluated; upstream comes first
    arch, weights     timm's name, and safetensors of the model with its head
    image_size, lr, epochs, batch_size
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
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

SEED, MOMENTUM, TEMPERATURE, ALPHA, LAM = 0, 0.9, 2.0, 0.5, 1.0
SOUP = ("fine_tune", "ewc", "lwf")  # and the pretrained model
State = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, logits and labels


class Cell:
    """What a method works with."""

    def __init__(self, settings: Any, method: str, downstream: str) -> None:
        self.settings, self.method, self.downstream = settings, method, downstream
        self.start: State = load_file(settings.weights)

    def network(self, state: State) -> nn.Module:
        """A network with these weights, in evaluation mode."""
        classes = len(self.data(self.settings.sets[0]).classes)
        net = timm.create_model(self.settings.arch, num_classes=classes)
        net.load_state_dict(state)
        return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def transform(self) -> Any:
        """timm's evaluation transform without a crop, in which the benchmark also trains."""
        known = timm.get_pretrained_cfg(self.settings.arch)
        config = resolve_data_config(pretrained_cfg=known.to_dict() if known else {})
        options = {name: config[name] for name in ("interpolation", "mean", "std")}
        return create_transform(self.settings.image_size, crop_pct=1.0, **options)

    def data(self, name: str) -> ImageFolder:
        return ImageFolder(str(Path(self.settings.images) / name), self.transform)

    def batches(
        self, name: str, order: np.ndarray | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images [B, 3, H, W] and labels [B] of a set."""
        data = self.data(name)
        order = np.arange(len(data)) if order is None else order
        batch = self.settings.batch_size
        for x, y in DataLoader(data, batch, sampler=order.tolist(), num_workers=1):
            yield x.contiguous(memory_format=torch.channels_last), y

    def folder(self, method: str) -> Path:
        return Path(self.settings.cells) / f"{method}-{self.downstream}"

    def finished(self, method: str) -> State:
        """The weights of another method's cell on the same set."""
        return load_file(self.folder(method) / "weights.safetensors")


def cross_entropy(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


def pretrained(cell: Cell) -> State:
    return cell.start


def fine_tune(cell: Cell) -> State:
    return train(cell, cell.network(cell.start), cross_entropy)


def linear_probe(cell: Cell) -> State:
    net = cell.network(cell.start).requires_grad_(False)
    net.get_classifier().requires_grad_(True)  # type: ignore[operator]
    return train(cell, net, cross_entropy, frozen=True)


def lp_ft(cell: Cell) -> State:
    return train(cell, cell.network(cell.finished("linear_probe")), cross_entropy)


def ewc(cell: Cell) -> State:
    net = cell.network(cell.start)
    anchor = {name: p.detach().clone() for name, p in net.named_parameters()}

    def loss(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        moved = (((p - anchor[n]) ** 2).sum() for n, p in net.named_parameters())
        return F.cross_entropy(logits, y) + LAM * torch.stack(list(moved)).sum()

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


METHODS = {
    f.__name__: f for f in (pretrained, fine_tune, linear_probe, ewc, lwf, lp_ft, wise_ft, soup)
}


def train(cell: Cell, net: nn.Module, loss_of: Loss, frozen: bool = False) -> State:
    """SGD with a linear warm-up and half a cosine; BatchNorm's statistics stay as they were.

    frozen: the network stays in evaluation mode, since only its head learns.
    """
    settings, images = cell.settings, len(cell.data(cell.downstream))
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, settings.lr, MOMENTUM, fused=True)
    total = math.ceil(images / settings.batch_size) * settings.epochs
    step = 0
    net.train(not frozen)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for epoch in range(settings.epochs):
        order = np.random.default_rng([SEED, epoch]).permutation(images)
        for x, y in cell.batches(cell.downstream, order):
            optimizer.param_groups[0]["lr"] = learning_rate(step, total, settings.lr)
            optimizer.zero_grad()
            loss_of(x, net(x), y).backward()
            optimizer.step()
            step += 1
    state = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    save_file(state, cell.folder(cell.method) / "weights.safetensors")
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
    for name in cell.settings.sets:
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in cell.batches(name))
        accuracy[name] = 100 * right / len(cell.data(name))
    return accuracy


def main(arguments: Sequence[str]) -> None:
    file, method, *downstream = arguments
    torch.set_num_threads(1)
    settings = SimpleNamespace(**json.loads(Path(file).read_text("utf-8")))
    cell = Cell(settings, method, *downstream or [""])
    cell.folder(method).mkdir(parents=True)
    accuracy = evaluate(cell, METHODS[method](cell))
    (cell.folder(method) / "accuracy.json").write_text(json.dumps(accuracy, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
