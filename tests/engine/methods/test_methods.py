"""Methods against a plain-torch statement of their loss; LoRA's is in test_lora.py."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grids import (
    CLASSES,
    CONV,
    SIZE,
    Grid,
    Prepared,
    distance,
    grid,
    images,
    labels,
    prepared,
    reference,
    same,
    weights,
)
from plain_losses import ON_FEW, PLACES, SLACK, check, cross_entropy, everything, selected
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import models
from engine.evaluation import features
from engine.training import fisher

__all__ = ["grid"]


@pytest.mark.parametrize("arch", ["test_vit", CONV])
@pytest.mark.parametrize("downstream", ["outline", "few"])
def test_fine_tuning_is_the_cross_entropy_over_the_classes_of_the_set(grid, arch, downstream):
    case = prepared(grid, f"model.arch={arch}", f"downstream={downstream}")
    expected_B = cross_entropy(case.net(case.x), case.y, downstream == "few")
    check(case, expected_B, everything(case.net))
    if downstream == "few":
        absent = [i for i in range(len(CLASSES)) if i not in PLACES]
        head = models.head(case.method.net)
        assert not head.weight.grad[absent].any() and head.weight.grad[PLACES].any()


@pytest.mark.parametrize("downstream", ["outline", "few"])
@pytest.mark.parametrize("variant", ["canonical", "paper"])
def test_a_linear_probe_has_the_cross_entropy_and_trains_what_its_variant_says(
    grid, variant, downstream
):
    case = prepared(
        grid, "method=linear_probe", f"method.variant={variant}", f"downstream={downstream}"
    )
    names = ["head.weight", "head.bias"]
    if variant == "paper":
        names += ["cls_token", "pos_embed", "norm.weight", "norm.bias"]
    expected_B = cross_entropy(case.net(case.x), case.y, downstream == "few")
    check(case, expected_B, selected(case.net, *names))
    assert not case.method.net.training


def test_a_paper_probe_of_a_convolutional_model_is_its_head(grid):
    arch = f"model.arch={CONV}"
    case = prepared(grid, arch, "method=linear_probe", "method.variant=paper")
    expected_B = cross_entropy(case.net(case.x), case.y)
    check(case, expected_B, selected(case.net, "classifier.weight", "classifier.bias"))


@pytest.mark.parametrize("downstream", ["outline", "few"])
def test_a_prompt_is_a_frame_that_is_added_after_normalisation(grid, downstream):
    case = prepared(grid, "method=visual_prompt", f"downstream={downstream}")
    width = round(30 * SIZE / 224)
    assert case.method.prompt.numel() == 3 * (SIZE**2 - (SIZE - 2 * width) ** 2)
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[width : SIZE - width, width : SIZE - width] = False
    canvas = case.method.image_prompt().detach().double()
    assert not canvas[:, ~frame].any()
    assert canvas[:, frame].std() == pytest.approx(1, abs=0.1)  # N(0, 1)
    canvas.requires_grad_(True)
    expected_B = cross_entropy(case.net(case.x + canvas), case.y, downstream == "few")
    losses_B = case.method(case.batch)
    torch.testing.assert_close(losses_B.double(), expected_B, **SLACK)
    losses_B.mean().backward()
    expected_B.mean().backward()
    trained = {n: p for n, p in case.method.named_parameters() if p.requires_grad}
    assert set(trained) == {"prompt"} and not case.method.net.training
    torch.testing.assert_close(
        case.method.prompt.grad.double(), canvas.grad[:, frame], rtol=1e-3, atol=1e-6
    )
    assert case.method.prompt.grad.abs().max() > 1e-5


def test_a_loss_that_is_not_one_a_sample_is_refused_by_its_methods_name(grid, tmp_path):
    (tmp_path / "mean.py").write_text(
        "from engine.methods import fine_tune\n"
        "from engine.methods.fine_tune import Recipe\n"
        "class Method(fine_tune.Method):\n"
        "    def loss(self, batch):\n"
        "        return super().loss(batch).mean()\n"
    )
    (tmp_path / "mean.yaml").write_text("name: averaged\ntitle: A\nmodule: mean.py\n")
    case = prepared(grid, f"method={tmp_path / 'mean.yaml'}")
    with pytest.raises(ValueError, match=r"method averaged: .* shape \[\], not \[5\].*\.mean\(\)"):
        case.method(case.batch)


def test_nothing_about_a_prompt_has_a_size_that_a_gpu_must_count(grid):
    method = prepared(grid, "method=visual_prompt").method
    with torch.autograd.profiler.profile() as ran:
        method.image_prompt().square().sum().backward()
    called = {event.name for event in ran.function_events}
    assert "IndexCopyBackward0" in called
    assert not called & {"aten::masked_select", "aten::nonzero"}


def test_the_paper_prompt_has_69840_parameters_at_224_pixels():
    assert 3 * (224**2 - (224 - 2 * round(30 * 224 / 224)) ** 2) == 69_840


@pytest.mark.parametrize("variant", ["canonical", "paper"])
@pytest.mark.parametrize("extra", [(), (ON_FEW,), ("method.temperature=3", "method.weight=0.4")])
def test_lwf_adds_the_divergence_from_the_teacher(grid, variant, extra):
    case = prepared(grid, "method=lwf", f"method.variant={variant}", *extra)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter, twin in zip(
            case.method.net.parameters(), case.net.parameters(), strict=True
        ):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            twin.copy_(parameter)
    few = ON_FEW in extra
    temperature, weight = (3, 0.4) if len(extra) == 2 else (2, 1.0)
    teacher_BC = reference(case.before)(case.x).detach()
    student_BC = case.net(case.x)
    columns = PLACES if few else list(range(len(CLASSES)))
    divergence_B = F.kl_div(
        F.log_softmax(student_BC[:, columns] / temperature, dim=1),
        F.softmax(teacher_BC[:, columns] / temperature, dim=1),
        reduction="none",
    ).sum(dim=1)
    assert divergence_B.mean() > 1e-3
    squared = temperature**2 if variant == "canonical" else 1
    expected_B = cross_entropy(student_BC, case.y, few) + weight * squared * divergence_B
    check(case, expected_B, everything(case.net))


def loop_fisher(grid: Grid, case: Prepared, arch: str) -> dict[str, torch.Tensor]:
    """Squared gradients of one upstream image at a time, averaged; labels are the data's."""
    net = reference(case.before, arch)
    index = case.builder.upstream.split("train")
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for i in index:
        single = np.array([i])
        loss = F.cross_entropy(
            net(images(grid, "upstream", single, arch)), labels(grid, "upstream", single)
        )
        for name, g in zip(sums, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            sums[name] += g**2
    return {name: total / len(index) for name, total in sums.items()}


class Matrices(TorchDispatchMode):
    """Keeps the shapes of all float matrices that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.shapes |= {tuple(t.shape) for t in tensors if t.ndim == 2 and t.is_floating_point()}
        return result


def test_features_and_logits_of_a_set_are_never_whole_on_the_device(grid, monkeypatch):
    builder = grid.builder()
    builder.features(builder.base, builder.target, training=True)  # made, and read from now on
    with Matrices() as matrices:
        case = prepared(grid, "method=lwf")
        case.method.loss(case.batch)
    assert (len(case.batch), len(CLASSES)) in matrices.shapes
    assert (len(builder.target.pack), len(CLASSES)) not in matrices.shapes
    key = features.key_of(builder.run, builder.base, builder.target)
    monkeypatch.setattr(features, "key_of", lambda *_, **__: key)
    elsewhere = dataclasses.replace(builder.run, device=torch.device("meta"))
    assert features.stored(elsewhere, builder.base, builder.target).device.type == "cpu"


@pytest.mark.parametrize("arch", ["test_vit", CONV])
def test_the_fisher_is_the_mean_of_squared_per_image_gradients(grid, arch):
    case = prepared(grid, f"model.arch={arch}", "method=ewc", "method.fisher_labels=data")
    expected = loop_fisher(grid, case, arch)
    fisher = case.builder.fisher(0, "data")
    assert fisher.keys() == expected.keys()
    for name, values in expected.items():
        peak = values.abs().max().item()
        torch.testing.assert_close(
            fisher[name].double(), values, rtol=1e-3, atol=1e-4 * peak + 1e-14
        )


@pytest.mark.parametrize("world", [2, 5])
def test_the_shares_of_the_ranks_sum_to_the_fisher_with_the_same_drawn_labels(
    grid, monkeypatch, world
):
    """25 images in three batches: of five ranks two have none."""
    run = grid.builder("method=ewc", "train.batch_size=12").run
    whole = fisher.diagonal(run, 0, "model")
    monkeypatch.setattr(fisher.ranks, "world", lambda: world)
    monkeypatch.setattr(fisher.dist, "all_reduce", lambda share: None)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(fisher.ranks, "rank", lambda rank=rank: rank)
        shares.append(fisher.diagonal(run, 0, "model"))
    assert sum(any(s.any() for s in share.values()) for share in shares) == min(world, 3)
    for name, values in whole.items():
        total = sum(share[name].double() for share in shares)
        torch.testing.assert_close(total, values.double(), rtol=1e-5, atol=1e-12)


def test_a_fisher_of_more_images_than_there_are_takes_all_and_says_so(grid, caplog):
    builder = grid.builder("method=ewc")
    assert same(builder.fisher(99, "data"), builder.fisher(0, "data"))
    assert "method.fisher_images=99: all 25 training images of upstream are taken" in caplog.text


def test_the_fisher_of_fewer_images_or_drawn_labels_is_another_and_bad_words_are_refused(grid):
    builder = grid.builder("method=ewc")
    builder.base  # noqa: B018  # trained before it is differentiated
    every, drawn = builder.fisher(0, "data"), builder.fisher(0, "model")
    fewer = builder.fisher(4, "data")
    assert not same(every, drawn) and not same(every, fewer)
    assert same(drawn, fisher.diagonal(builder.run, 0, "model"))  # seeded
    with pytest.raises(ValueError, match=r"method.fisher_labels='guess': `model` or `data`"):
        builder.fisher(0, "guess")
    with pytest.raises(ValueError, match=r"method.lam=-1 must be a number of at least 0"):
        prepared(grid, "method=ewc", "method.lam=-1")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("variant", ["canonical", "paper"])
def test_ewc_steps_down_its_loss_with_the_penalty_in_it(grid, variant, optimizer):
    """Three full-batch steps: at the first the anchor is where the weights are."""
    lam, lr, steps = 10.0, {"adamw": 1e-3, "sgd": 0.05}[optimizer], 3
    words = ["method=ewc", f"method.variant={variant}", f"method.lam={lam}"]
    words += ["method.fisher_labels=data", "method.fisher_scale=mean", "optimizer.eps=1e-3"]
    words += [f"optimizer.name={optimizer}", f"optimizer.lr={lr}", "train.warmup_steps=0"]
    words += [f"train.epochs={steps}", "train.batch_size=25"]
    builder, cell = grid.build(*words)
    case = prepared(grid, *words)
    scale = {name: torch.ones_like(p) for name, p in case.net.named_parameters()}
    if variant == "canonical":
        raw = loop_fisher(grid, case, "test_vit")
        mean = sum(f.sum() for f in raw.values()) / sum(f.numel() for f in raw.values())
        scale = {name: f / (2 * mean) for name, f in raw.items()}
    if optimizer == "sgd":  # whose steps can follow no firmer pull
        scale = {name: f.clamp(max=1.9 / (2 * lam * lr)) for name, f in scale.items()}
    index = builder.target.split("train")
    x, y = images(grid, "outline", index), labels(grid, "outline", index)
    net, anchor = case.net, reference(case.before).state_dict()
    kinds = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=lr, eps=1e-3, weight_decay=0),
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
    }
    descent = kinds[optimizer](list(net.parameters()))
    for step in range(steps):
        descent.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        pull = sum((scale[n] * (p - anchor[n]) ** 2).sum() for n, p in net.named_parameters())
        assert (pull > 0) == (step > 0)
        descent.zero_grad()
        (F.cross_entropy(net(x), y) + lam * pull).backward()
        descent.step()
    expected = {n: p.detach() - anchor[n] for n, p in net.named_parameters()}
    actual = {n: w.double() - anchor[n] for n, w in weights(cell).items()}
    assert distance(actual, expected) < 1e-4
    plain = weights(
        grid.build(*words, "method.lam=0", f"train.epochs={steps}", "train.batch_size=25")[1]
    )
    without = {n: w.double() - anchor[n] for n, w in plain.items()}
    assert distance(without, expected) > 1e-2, "the penalty is too weak for this test to see"


def test_lp_ft_starts_at_the_finished_probe(grid):
    case = prepared(grid, "method=lp_ft")
    probe = weights(case.builder.cell("linear_probe"))
    assert same(case.method.net.state_dict(), probe) and not same(probe, case.before)
    net = reference(probe)
    check(case, cross_entropy(net(case.x), case.y), everything(net))
