"""A method trained by the engine ends in the weights of a tutorial's loop; on a GPU and a CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.children import NEEDS_GPU, in_new_process

pytest.importorskip("msgspec")  # the engine's, which a bare machine has not
from bench.vit import autocast
from engine import models
from engine.cells.build import Builder
from engine.cost.throughput import Bench
from engine.machine import ranks
from engine.recipe.overrides import parsed
from engine.training import batches, optim

LR, STEPS, BATCH = 1e-2, 5, 4
TOY = ("model.arch=test_vit", "model.image_size=32")


def of_fine_tune(builder: Builder, net: nn.Module, x: torch.Tensor, logits: torch.Tensor):
    """What the method adds to the cross-entropy, as its paper writes it."""
    return 0.0


def of_ewc(builder: Builder, net: nn.Module, x: torch.Tensor, logits: torch.Tensor):
    """lam / 2 sum F (theta - theta_pre)^2, F with mean 1: Kirkpatrick et al. 2017, eq. 3.

    F is cut where steps of SGD with momentum 0.9 would overshoot the anchor."""
    options, start = builder.recipe.method, builder.base.state()
    fisher = builder.fisher(options.fisher_images, options.fisher_labels)
    mean = torch.cat([values.flatten() for values in fisher.values()]).mean()
    pulls = []
    for name, p in net.named_parameters():
        weight = (fisher[name] / mean).clamp(max=1.9 / (LR * options.lam)).to(x.device)
        pulls.append((weight * (p - start[name].to(x.device)) ** 2).sum())
    return options.lam / 2 * torch.stack(pulls).sum()


def of_lwf(builder: Builder, net: nn.Module, x: torch.Tensor, logits: torch.Tensor):
    """weight T^2 KL(teacher / T || student / T): Li & Hoiem 2016, Hinton et al. 2015."""
    options = builder.recipe.method
    with torch.no_grad():
        teacher = builder.network(builder.base)(x) / options.temperature
    student = (logits / options.temperature).log_softmax(1)
    kl = F.kl_div(student, teacher.log_softmax(1), reduction="batchmean", log_target=True)
    return options.weight * options.temperature**2 * kl


# LwF's weight: in few steps what it adds is a hundredth of the cross-entropy's pull.
METHODS = [(of_fine_tune, ()), (of_ewc, ("method.lam=1",)), (of_lwf, ("method.weight=100",))]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_the_engine_ends_in_the_weights_of_a_plain_loop(device, tmp_path):
    in_new_process(train_by_both, device, tmp_path)


def train_by_both(kind: str, folder: Path) -> None:
    device = ranks.start(kind)
    from deepspeed.accelerator import get_accelerator  # late: it reads what `ranks.start` sets

    assert get_accelerator().device_name() == device.type
    for added, options in METHODS:
        of_method(added, options, device, folder)


def of_method(
    added: Callable, options: tuple[str, ...], device: torch.device, folder: Path
) -> None:
    method = added.__name__.removeprefix("of_")
    bench = Bench(folder, "file", parsed((*TOY, f"optimizer.lr={LR}", *options)), device, STEPS)
    with bench.training(method, BATCH) as training:
        builder = training.builder
        net = builder.network(builder.base)
        start = {name: value.clone() for name, value in net.state_dict().items()}
        target = builder.target
        (batch,) = builder.sets.source(target.name).batches([np.arange(len(target.labels))])
        x = models.Normalize(builder.recipe.model, device)(batch.images)
        y = target.labels.to(device)
        optimizer = torch.optim.SGD(net.parameters(), LR, builder.recipe.optimizer.momentum)
        shares = [*batches.epoch_shares(target.split("train"), builder, epoch=0, rank=0, world=1)]
        net.train()
        for step, share in enumerate(shares):
            optimizer.param_groups[0]["lr"] = optim.learning_rate(step, len(shares), 0, LR)
            optimizer.zero_grad()
            with autocast(device):
                logits = net(x[share.index])
                loss = F.cross_entropy(logits, y[share.index])
                loss = loss + added(builder, net, x[share.index], logits)
            loss.backward()
            optimizer.step()
        training.run()
        trained = training.method.export().state
    moved = max((value - start[name]).abs().max() for name, value in net.state_dict().items())
    tolerance = (1e-3 if device.type == "cpu" else 0.1) * moved.item()
    assert moved > 0
    for name, expected in net.state_dict().items():
        torch.testing.assert_close(
            *(trained[name], expected.cpu()), rtol=0, atol=tolerance,
            msg=lambda text, name=name: f"{method}, {name}: {text}",
        )  # fmt: skip
