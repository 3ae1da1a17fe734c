"""A method trained by the engine ends in the weights of a tutorial's loop; on a GPU and a CPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from children import NEEDS_GPU
from torch import nn

pytest.importorskip("msgspec")  # the engine's, which a bare machine has not
from bench.vit import autocast
from engine import models
from engine.grid.build import Builder
from engine.grid.speed import Bench
from engine.machine import ranks
from engine.training import optim, schedule

LR, STEPS, BATCH = 1e-2, 5, 4
TOY = ("model.arch=test_vit", "model.image_size=32")
# LwF's weight: in few steps what it adds is a hundredth of the cross-entropy's pull.
METHODS = {"fine_tune": (), "ewc": ("method.lam=1",), "lwf": ("method.weight=100",)}


def term(builder: Builder):
    """What the method adds to the cross-entropy, as its paper writes it; of net, images, logits."""
    options = builder.recipe.method
    base = builder.network(builder.base)

    def ewc(net, x, logits):
        """lam / 2 sum F (theta - theta_pre)^2, F with mean 1: Kirkpatrick et al. 2017, eq. 3.

        F is cut where steps of SGD with momentum 0.9 would overshoot the anchor."""
        fisher = builder.fisher(options.fisher_images, options.fisher_labels)
        mean = torch.cat([values.flatten() for values in fisher.values()]).mean()
        anchor, bound = base.state_dict(), 1.9 / (LR * options.lam)
        pulls = [
            ((fisher[name] / mean).clamp(max=bound).to(x.device) * (p - anchor[name]) ** 2).sum()
            for name, p in net.named_parameters()
        ]
        return options.lam / 2 * torch.stack(pulls).sum()

    def lwf(net, x, logits):
        """weight T^2 KL(teacher / T || student / T): Li & Hoiem 2016, Hinton et al. 2015."""
        T = options.temperature
        with torch.no_grad():
            teacher = (base(x) / T).log_softmax(1)
        student = (logits / T).log_softmax(1)
        kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return options.weight * T**2 * kl

    return {"ewc": ewc, "lwf": lwf}.get(options.name, lambda net, x, logits: 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_the_engine_ends_in_the_weights_of_a_plain_loop(method, device, tmp_path):
    device = ranks.start(device)
    words = (*TOY, f"optimizer.lr={LR}", *METHODS[method])
    with Bench(tmp_path, "file", words, device, STEPS).training(method, BATCH) as training:
        builder = training.builder
        net = builder.network(builder.base)
        start = {name: value.clone() for name, value in net.state_dict().items()}
        added = term(builder)
        target = builder.target
        (batch,) = builder.sets.source(target.name).batches([np.arange(len(target.labels))])
        x = models.Normalize(builder.recipe.model, device)(batch.images)
        y = target.labels.to(device)
        optimizer = torch.optim.SGD(net.parameters(), LR, builder.recipe.optimizer.momentum)
        shares = list(
            schedule.schedule(target.split("train"), builder.run, epoch=0, rank=0, world=1)
        )
        rate = partial(optim.learning_rate, total=len(shares), warmup=0, base=LR)
        net.train()
        for step, share in enumerate(shares):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            with autocast(device):
                logits = net(x[share.index])
                loss = F.cross_entropy(logits, y[share.index]) + added(net, x[share.index], logits)
            loss.backward()
            optimizer.step()
        training.run()
        trained = training.method.export().state
    moved = max((value - start[name]).abs().max() for name, value in net.state_dict().items())
    tolerance = (1e-3 if device.type == "cpu" else 0.1) * moved.item()
    assert moved > 0
    for name, expected in net.state_dict().items():
        torch.testing.assert_close(trained[name], expected.cpu(), rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPU)])
def test_products_are_in_bf16(device, tmp_path):
    """Through DeepSpeed; not compiled, since a hook would break the graph."""
    dtypes = set()
    bench = Bench(tmp_path, "file", (*TOY, "train.compile=never"), ranks.start(device), STEPS)
    with bench.training("fine_tune", BATCH) as training:
        for module in training.method.net.blocks.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *of_call: dtypes.add(of_call[-1].dtype))
        training.run()
    assert dtypes == {torch.bfloat16}
