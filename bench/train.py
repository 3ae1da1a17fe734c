"""An epoch of fine-tuning: by the engine, by a tutorial's loop, and by timm's loop.

    rib            FT, EWC and LwF as a campaign trains them: a pack, DeepSpeed, the look at loss
                   and weights at the epoch's end; EWC's Fisher and LwF's teacher are at hand
    plain loop     PyTorch's fused SGD on normalised images that wait on the device
    compiled       on a GPU, the plain loop with torch.compile
    timm's loop    timm's loader over photo files, its optimizer, task and meter, as its script

ViT-B at 224 px in batches of 64 on a GPU, where ours is compiled; on a CPU ViT-S at 64 px in
batches of 8, since 224 px would take hours.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.task import ClassificationTask
from timm.utils.metrics import AverageMeter
from torch import Tensor, nn

from bench import loader, photos
from bench.contest import Contest, Entrant, Run, Scale
from bench.vit import autocast
from engine import models
from engine.cost import throughput
from engine.machine import ranks
from engine.machine.terminal import quiet_libraries
from engine.recipe.overrides import parsed
from engine.recipe.schema import ModelRecipe

LR, MOMENTUM = 1e-3, 0.9
METHODS = ("fine_tune", "ewc", "lwf")
WORKERS = 16  # of timm's loader, at most


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    if device.type == "cuda":
        arch, size, batch, steps = "vit_base_patch16_224", 224, 64, 30
    else:
        arch, size, batch, steps = "vit_small_patch16_224", 64, 8, 12
    if scale.quick:
        arch, size, batch, steps = "test_vit", 32, 4, 2
    quiet_libraries()
    ranks.start(device.type)
    with tempfile.TemporaryDirectory() as name, ExitStack() as engines:
        folder, images = Path(name), steps * batch
        photos.write(folder / "files", images, scale.draws)
        model = ModelRecipe(name=arch, arch=arch, image_size=size)
        pack = photos.encode(folder / "raw", folder / "files", model, "raw")
        words = [f"model.arch={arch}", f"model.image_size={size}", f"optimizer.lr={LR}"]
        bench = throughput.Bench(folder, "file", parsed(words), device, steps, pack)
        files = loader.timm(
            folder / "files", model, batch, min(WORKERS, os.cpu_count() or 1), device
        )
        waiting = [(x.clone(), y.clone()) for x, y in files]
        torch.manual_seed(0)
        nets = [models.create(model, photos.CLASSES).to(device) for _ in range(3)]
        peers = [
            Entrant("plain loop", _plain_loop(nets[0], waiting), images),
            Entrant("timm's loop", _timms_loop(nets[1], files, device), images),
        ]
        if device.type == "cuda":  # where ours is compiled
            nets[2].compile()
            peers.append(Entrant("compiled", _plain_loop(nets[2], waiting), images))
        for method in METHODS:
            run = engines.enter_context(bench.training(method, batch)).run
            yield Contest(
                f"{method}, {arch} {size} px x {batch}",
                Entrant("rib", _waited(run, device), images),
                tuple(peers),
                rounds=3,
            )


def _plain_loop(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Run:
    optimizer = torch.optim.SGD(net.parameters(), LR, MOMENTUM, fused=True)
    device = next(net.parameters()).device

    def epoch() -> None:
        net.train()
        for x, y in batches:
            optimizer.zero_grad()
            with autocast(device):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()

    return _waited(epoch, device)


def _timms_loop(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Run:
    """An epoch of timm's training script, without its log."""
    task = ClassificationTask(net, nn.CrossEntropyLoss(), device=device, verbose=False)
    optimizer = create_optimizer_v2(net, opt="momentum", lr=LR, momentum=MOMENTUM)

    def epoch() -> None:
        losses = AverageMeter()
        task.train()
        for x, y in batches:
            with autocast(device):
                loss = task(x, y)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), len(x))

    return _waited(epoch, device)


def _waited(epoch: Run, device: torch.device) -> Run:
    def run() -> None:
        epoch()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
