"""Every method against a plain-torch statement of its loss, and what it may and may not change."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grids import (
    CLASSES,
    CONV,
    FEW,
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
from safetensors.torch import load_file
from torch import nn

from engine import artifacts, fisher, models
from engine.errors import RecipeError
from engine.methods import lora
from engine.weights import checkpoints

__all__ = ["grid"]
PLACES = [CLASSES.index(name) for name in FEW]
LORA_PAPER = ("cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias")
ON_FEW = "downstream=few"
SLACK = {"rtol": 2e-4, "atol": 2e-6}  # float32 against float64


def cross_entropy(logits: torch.Tensor, y: torch.Tensor, few: bool = False) -> torch.Tensor:
    """Per sample; over the classes of `few` alone where the set is that."""
    if not few:
        return F.cross_entropy(logits, y, reduction="none")
    inside = torch.tensor([PLACES.index(int(label)) for label in y])
    return F.cross_entropy(logits[:, PLACES], inside, reduction="none")


def check(case: Prepared, wanted_B: torch.Tensor, trained: dict[str, torch.Tensor]) -> None:
    """Losses, and the gradient of every trained parameter; no other parameter gets one.

    trained: the reference's parameters by the name that the method's have below `net.`.
    """
    losses_B = case.method(case.batch)
    assert losses_B.shape == wanted_B.shape
    torch.testing.assert_close(losses_B.double(), wanted_B, **SLACK)
    losses_B.mean().backward()
    wanted_B.mean().backward()
    found = {n.removeprefix("net."): p for n, p in case.method.named_parameters()}
    assert {n for n, p in found.items() if p.requires_grad} == set(trained)
    for name, parameter in found.items():
        if name not in trained:
            assert parameter.grad is None, name
            continue
        wanted = trained[name].grad
        assert wanted is not None and parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad.double(), wanted, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        # The key's bias has no gradient at all, so a single tensor may be zero, but not all.
    assert any(trained[name].grad.abs().max() > 1e-3 for name in trained)


def everything(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.named_parameters())


def some(net: nn.Module, *names: str) -> dict[str, torch.Tensor]:
    return {n: p for n, p in net.named_parameters() if n in names}


@pytest.mark.parametrize("arch", ["test_vit", CONV])
@pytest.mark.parametrize("downstream", ["outline", "few"])
def test_fine_tuning_is_the_cross_entropy_over_the_classes_of_the_set(grid, arch, downstream):
    case = prepared(grid, f"model.arch={arch}", f"downstream={downstream}")
    wanted_B = cross_entropy(case.net(case.x), case.y, downstream == "few")
    check(case, wanted_B, everything(case.net))
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
    wanted_B = cross_entropy(case.net(case.x), case.y, downstream == "few")
    check(case, wanted_B, some(case.net, *names))
    assert not case.method.net.training


def test_a_paper_probe_of_a_convolutional_model_is_its_head(grid):
    arch = f"model.arch={CONV}"
    case = prepared(grid, arch, "method=linear_probe", "method.variant=paper")
    wanted_B = cross_entropy(case.net(case.x), case.y)
    check(case, wanted_B, some(case.net, "classifier.weight", "classifier.bias"))


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
    wanted_B = cross_entropy(case.net(case.x + canvas), case.y, downstream == "few")
    losses_B = case.method(case.batch)
    torch.testing.assert_close(losses_B.double(), wanted_B, **SLACK)
    losses_B.mean().backward()
    wanted_B.mean().backward()
    trained = {n: p for n, p in case.method.named_parameters() if p.requires_grad}
    assert set(trained) == {"prompt"} and not case.method.net.training
    torch.testing.assert_close(
        case.method.prompt.grad.double(), canvas.grad[:, frame], rtol=1e-3, atol=1e-6
    )
    assert case.method.prompt.grad.abs().max() > 1e-5


def test_nothing_about_a_prompt_has_a_size_that_a_gpu_must_count(grid):
    method = prepared(grid, "method=visual_prompt").method
    with torch.autograd.profiler.profile() as ran:
        method.image_prompt().square().sum().backward()
    called = {event.name for event in ran.function_events}
    assert "IndexCopyBackward0" in called
    assert not called & {"aten::masked_select", "aten::nonzero"}


def test_the_paper_prompt_has_69840_parameters_at_224_pixels():
    assert 3 * (224**2 - (224 - 2 * round(30 * 224 / 224)) ** 2) == 69_840


class QueryValue(nn.Module):
    """Hu et al. 2021, equation 3, on the query and value of a fused qkv: never merged."""

    def __init__(self, qkv: nn.Linear, low_rank: lora.LowRank) -> None:
        super().__init__()
        self.qkv, self.scale = qkv, low_rank.scale
        self.A, self.B = (nn.Parameter(p.detach().double()) for p in (low_rank.A, low_rank.B))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = q + self.scale * F.linear(F.linear(x, self.A[0]), self.B[0])
        v = v + self.scale * F.linear(F.linear(x, self.A[1]), self.B[1])
        return torch.cat([q, k, v], dim=-1)


class Pointwise(nn.Module):
    """A 1x1 convolution and, beside it, two more of low rank."""

    def __init__(self, conv: nn.Conv2d, low_rank: lora.LowRank) -> None:
        super().__init__()
        self.conv, self.scale = conv, low_rank.scale
        self.A, self.B = (nn.Parameter(p.detach().double()) for p in (low_rank.A, low_rank.B))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down = F.conv2d(x, self.A[0, :, :, None, None], stride=self.conv.stride)
        return self.conv(x) + self.scale * F.conv2d(down, self.B[0, :, :, None, None])


def with_factors(
    case: Prepared, wrapper: Callable[[nn.Module, lora.LowRank], nn.Module]
) -> dict[str, torch.Tensor]:
    """Put the method's factors beside the reference's layers; the factors by the method's names."""
    trained: dict[str, torch.Tensor] = {}
    for name, module in list(case.method.net.named_modules()):
        if not isinstance(module, lora.LowRank):
            continue
        place = name.removesuffix(".low_rank")
        parent, _, attribute = place.rpartition(".")
        beside = wrapper(case.net.get_submodule(place), module)
        setattr(case.net.get_submodule(parent), attribute, beside)
        trained |= {f"{name}.A": beside.A, f"{name}.B": beside.B}
    return trained


def grown(case: Prepared) -> None:
    """B starts at zero, where A has no gradient; give it values."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in case.method.named_parameters():
        if name.endswith(".B"):
            assert not parameter.any()
            parameter.data.normal_(generator=generator)
        elif name.endswith(".A"):
            bound = 1 / math.sqrt(parameter.shape[-1])  # Kaiming with a = sqrt(5)
            assert 0.8 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize(
    ("extra", "others"),
    [
        (("method.variant=canonical",), ("head.weight", "head.bias")),
        (("method.variant=canonical", "method.train_head=false"), ()),
        (("method.variant=canonical", "method.rank=3", "method.scale=2", ON_FEW), LORA_PAPER[-2:]),
        (("method.variant=paper",), LORA_PAPER),
    ],
)
def test_lora_adds_low_rank_factors_to_query_and_value(grid, extra, others):
    case = prepared(grid, "method=lora", *extra)
    grown(case)
    trained = with_factors(case, QueryValue)
    assert len(trained) == 2 * len(case.net.blocks)
    wanted_B = cross_entropy(case.net(case.x), case.y, ON_FEW in extra)
    # `norm.weight` of the method's net is a plain parameter, so names agree with the reference's.
    check(case, wanted_B, trained | some(case.net, *others))
    assert case.method.recipe.scale == (2 if "method.scale=2" in extra else 1 / 8)


def test_lora_of_a_convolutional_model_sits_on_its_pointwise_convolutions(grid):
    case = prepared(grid, f"model.arch={CONV}", "method=lora")
    grown(case)
    pointwise = [m for m in case.net.modules() if getattr(m, "kernel_size", 0) == (1, 1)]
    trained = with_factors(case, Pointwise)
    assert len(trained) == 2 * len(pointwise) > 0
    wanted_B = cross_entropy(case.net(case.x), case.y)
    check(case, wanted_B, trained | some(case.net, "classifier.weight", "classifier.bias"))


def test_an_altered_byte_of_what_is_kept_is_refused(grid):
    context = grid.context("method=ewc", "seed=5", f"runs={grid.runs.parent / 'altered'}")
    uses = {
        "fisher/*/fisher.safetensors": lambda: context.fisher(4, "data"),
        "features/*/features.npy": lambda: context.features(context.base, context.target),
        "cells/visual*/prompt.safetensors": lambda: context.cell("visual_prompt").prompt(),
        "cells/visual*/weights.safetensors": lambda: context.cell("visual_prompt").state(),
        "cells/visual*/cell.json": lambda: context.cell("visual_prompt").meta,
    }
    for use in uses.values():
        use()
    for pattern, use in uses.items():
        for path in context.store.root.glob(pattern):
            data = bytearray(path.read_bytes())
            data[-9] ^= 1
            path.write_bytes(data)
        artifacts._hash_once.cache_clear()
        with pytest.raises(ValueError, match=rf"{pattern.rpartition('/')[2]} was altered; delete"):
            use()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def test_lora_refuses_what_it_cannot_adapt(grid):
    with pytest.raises(ValueError, match="exists for ViTs only; use variant=canonical"):
        prepared(grid, f"model.arch={CONV}", "method=lora", "method.variant=paper")
    with pytest.raises(ValueError, match=r"method.rank=0 must be at least 1"):
        prepared(grid, "method=lora", "method.rank=0")


def test_features_and_logits_pass_through_lora(grid):
    case = prepared(grid, "method=lora")
    grown(case)
    net = case.method.net
    with torch.no_grad():
        x = case.x.float()
        torch.testing.assert_close(models.head(net)(models.features(net, x)), net(x))
        with_factors(case, QueryValue)
        torch.testing.assert_close(net(x).double(), case.net(case.x), **SLACK)


@pytest.mark.parametrize("variant", ["canonical", "paper"])
@pytest.mark.parametrize("extra", [(), (ON_FEW,), ("method.temperature=3", "method.weight=0.4")])
def test_lwf_adds_the_divergence_from_the_teacher(grid, variant, extra):
    case = prepared(grid, "method=lwf", f"method.variant={variant}", *extra)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for mine, theirs in zip(case.method.net.parameters(), case.net.parameters(), strict=True):
            mine += 0.05 * torch.randn(mine.shape, generator=generator)
            theirs.copy_(mine)
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
    wanted_B = cross_entropy(student_BC, case.y, few) + weight * squared * divergence_B
    check(case, wanted_B, everything(case.net))


def loop_fisher(grid: Grid, case: Prepared, arch: str) -> dict[str, torch.Tensor]:
    """Squared gradients of one upstream image at a time, averaged; labels are the data's."""
    net = reference(case.before, arch)
    index = case.context.upstream.split("train")
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for i in index:
        one = np.array([i])
        loss = F.cross_entropy(
            net(images(grid, "upstream", one, arch)), labels(grid, "upstream", one)
        )
        for name, g in zip(sums, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            sums[name] += g**2
    return {name: total / len(index) for name, total in sums.items()}


@pytest.mark.parametrize("arch", ["test_vit", CONV])
def test_the_fisher_is_the_mean_of_squared_per_image_gradients(grid, arch):
    case = prepared(grid, f"model.arch={arch}", "method=ewc", "method.fisher_labels=data")
    wanted = loop_fisher(grid, case, arch)
    found = case.context.fisher(0, "data")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        peak = values.abs().max().item()
        torch.testing.assert_close(
            found[name].double(), values, rtol=1e-3, atol=1e-4 * peak + 1e-14
        )


def test_the_fisher_of_fewer_images_or_drawn_labels_is_another_and_bad_words_are_refused(grid):
    context = grid.context("method=ewc")
    context.base  # noqa: B018  # trained before it is differentiated
    every, drawn = context.fisher(0, "data"), context.fisher(0, "model")
    fewer = context.fisher(4, "data")
    assert not same(every, drawn) and not same(every, fewer)
    assert same(drawn, fisher.diagonal(context, 0, "model"))  # seeded
    with pytest.raises(ValueError, match=r"method.fisher_labels='guess': `model` or `data`"):
        context.fisher(0, "guess")
    with pytest.raises(ValueError, match=r"method.fisher_images=99, but upstream has 25"):
        context.fisher(99, "data")
    with pytest.raises(ValueError, match=r"method.lam=-1.0 must be at least 0"):
        prepared(grid, "method=ewc", "method.lam=-1")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("variant", ["canonical", "paper"])
def test_ewc_steps_down_its_loss_with_the_penalty_in_it(grid, variant, optimizer):
    """Three full-batch steps: at the first the anchor is where the weights are."""
    lam, lr, steps = 3.0, {"adamw": 1e-3, "sgd": 0.05}[optimizer], 3
    words = ["method=ewc", f"method.variant={variant}", f"method.lam={lam}"]
    words += ["method.fisher_labels=data", "method.fisher_scale=mean", "optimizer.eps=1e-3"]
    words += [f"optimizer.name={optimizer}", f"optimizer.lr={lr}", "train.warmup_steps=0"]
    words += [f"train.epochs={steps}", "train.batch_size=25"]
    context, cell = grid.build(*words)
    case = prepared(grid, *words)
    scale = {name: torch.ones_like(p) for name, p in case.net.named_parameters()}
    if variant == "canonical":
        raw = loop_fisher(grid, case, "test_vit")
        mean = sum(f.sum() for f in raw.values()) / sum(f.numel() for f in raw.values())
        scale = {name: f / (2 * mean) for name, f in raw.items()}
    index = context.target.split("train")
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
    moved = {n: p.detach() - anchor[n] for n, p in net.named_parameters()}
    found = {n: w.double() - anchor[n] for n, w in weights(cell).items()}
    assert distance(found, moved) < 1e-4
    plain = weights(
        grid.build(*words, "method.lam=0", f"train.epochs={steps}", "train.batch_size=25")[1]
    )
    without = {n: w.double() - anchor[n] for n, w in plain.items()}
    assert distance(without, moved) > 1e-2, "the penalty is too weak for this test to see"


def test_lp_ft_starts_at_the_finished_probe(grid):
    case = prepared(grid, "method=lp_ft")
    probe = weights(case.context.cell("linear_probe"))
    assert same(case.method.net.state_dict(), probe) and not same(probe, case.before)
    net = reference(probe)
    check(case, cross_entropy(net(case.x), case.y), everything(net))


HEAD = ("head.weight", "head.bias")
QKV = tuple(f"blocks.{i}.attn.qkv.weight" for i in range(6))
TRAINS = [
    ("fine_tune", "canonical", None),
    ("ewc", "canonical", None),
    ("ewc", "paper", None),
    ("lwf", "canonical", None),
    ("lwf", "paper", None),
    ("lp_ft", "canonical", None),
    ("linear_probe", "canonical", HEAD),
    ("linear_probe", "paper", LORA_PAPER),
    ("visual_prompt", "canonical", ()),
    ("lora", "canonical", (*QKV, *HEAD)),
    ("lora", "paper", (*QKV, *LORA_PAPER)),
]


@pytest.mark.parametrize(("method", "variant", "moves"), TRAINS)
def test_what_trains_moves_and_nothing_else_does_bit_for_bit(grid, method, variant, moves):
    context, cell = grid.build(f"method={method}", f"method.variant={variant}")
    before, after = context.base.state(), weights(cell)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == (set(before) if moves is None else set(moves))
    if method == "lora":
        width = before["cls_token"].shape[-1]
        for name in QKV:
            changed = (before[name] != after[name]).any(dim=1)
            assert changed[:width].any() and changed[2 * width :].any()
            assert not changed[width : 2 * width].any(), "keys have no factors"
    assert (cell.backbone == context.base.backbone) == (
        method == "linear_probe" and variant == "canonical"
    )
    assert (cell.prompt() is not None) == (method == "visual_prompt")


@pytest.mark.parametrize(
    ("method", "arch"),
    [(m, "test_vit") for m in sorted({method for method, _, _ in TRAINS})] + [("lora", CONV)],
)
def test_an_export_is_a_plain_timm_model_with_the_same_logits(grid, method, arch, tmp_path):
    case = prepared(grid, f"method={method}", f"model.arch={arch}")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in case.method.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        case.method.eval()
        wanted = case.method.logits(case.batch)
        assert not torch.allclose(wanted.double(), case.net(case.x), atol=1e-3)
        export = case.method.export()
        checkpoints.save(export.state, tmp_path / "export.safetensors")
        net = reference(load_file(tmp_path / "export.safetensors"), arch)
        prompt = 0 if export.prompt is None else export.prompt.double()
        torch.testing.assert_close(wanted.double(), net(case.x + prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("optimizer", "stage"), [("sgd", 0), ("adamw", 1)])
def test_without_their_extra_term_ewc_and_lwf_are_fine_tuning_bit_for_bit(grid, optimizer, stage):
    words = [f"optimizer.name={optimizer}", "optimizer.lr=0.002", f"train.zero_stage={stage}"]
    plain = weights(grid.build(*words)[1])
    for extra in ("method=ewc method.lam=0", "method=lwf method.weight=0"):
        for variant in ("canonical", "paper"):
            cell = grid.build(*words, *extra.split(), f"method.variant={variant}")[1]
            assert same(weights(cell), plain), extra
    other = weights(grid.build(*words, "method=lwf")[1])
    assert not same(other, plain)


@pytest.mark.parametrize("arch", ["test_vit", CONV])
def test_frozen_batchnorm_keeps_its_buffers_and_free_batchnorm_does_not(grid, arch):
    words = (f"model.arch={arch}", "train.batch_size=5")
    context, cell = grid.build(*words)
    before, after = context.base.state(), weights(cell)
    buffers = [n for n in before if "running_" in n or "num_batches" in n]
    assert bool(buffers) == (arch == CONV)
    assert all(torch.equal(before[n], after[n]) for n in buffers)
    free = weights(grid.build(*words, "train.freeze_batchnorm=false")[1])
    assert all(not torch.equal(before[n], free[n]) for n in buffers)


def test_a_method_of_the_users_own_is_one_file(grid, tmp_path):
    file = tmp_path / "shout.py"
    file.write_text(
        "from engine.methods.base import Trained\n"
        "from engine.schema import MethodRecipe as Recipe\n"
        "class Method(Trained):\n"
        "    def loss(self, batch):\n"
        "        return 2 * super().loss(batch)\n"
    )
    context, cell = grid.build(f"method.module={file}", "method.name=shout", "method.title=Shout")
    doubled = grid.build("optimizer.lr=0.04")[1]
    assert distance(weights(cell), weights(doubled)) < 1e-5
    before = context.key()
    file.write_text(file.read_text().replace("2 *", "3 *"))
    assert context.key() != before, "an edited method must train again"
    with pytest.raises((ValueError, RecipeError), match="is not a Python file"):
        grid.context(f"method.module={tmp_path / 'absent.py'}")
