"""A model is itself, whichever way it is evaluated and whichever network its weights run in."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from torch import nn

from engine.cells.build import Builder
from engine.evaluation import features, passes
from engine.machine.devices import pick_device
from engine.models.execution import Backbone, Form
from engine.recipe.schema import EvaluateRecipe
from engine.store import cells
from engine.training import loop
from helpers.grids import CONV, VIT, prepared
from helpers.twins import assert_near

SET = "outline"


def table(builder: Builder, mix: cells.Mix) -> dict[str, np.ndarray]:
    """The stored predictions of a mix on a set."""
    passes.evaluate(builder, [mix], [SET], "all")
    stored = pq.read_table(passes.predicted(builder, mix, SET, "all"))
    return {name: stored[name].to_numpy() for name in ("top1", "p_top1", "p_true", "margin")}


@pytest.mark.parametrize("arch", [CONV, VIT])
@pytest.mark.parametrize(
    "words",
    [
        ("evaluate.precision=fp32",),
        ("evaluate.precision=bf16",),
        pytest.param(
            ("evaluate.precision=bf16", "evaluate.compile=always"),
            marks=[pytest.mark.slow, pytest.mark.exhaustive],
        ),
    ],
)
def test_a_model_from_stored_features_is_the_model_from_images(grid, arch, words):
    """A mix with 1e-9 of another model has the same weights, but passes as a whole.

    Some weights differ in their last bit, which bf16 may round to either side.
    """
    bf16 = "evaluate.precision=bf16" in words
    builder = grid.builder(f"model.arch={arch}", *words)
    tuned = builder.cell("fine_tune").name
    for cell in (builder.base, builder.cell("linear_probe")):
        stored = table(builder, {cell.name: 1.0})
        whole = table(builder, {cell.name: 1 - 1e-9, tuned: 1e-9})
        assert np.array_equal(stored["top1"], whole["top1"])
        for name in ("p_top1", "p_true", "margin"):
            apart = np.abs(stored[name] - whole[name])
            assert (apart > 5e-5).mean() <= (0.1 if bf16 else 0), apart
            assert apart.max() < (0.05 if bf16 else 5e-5), apart


@pytest.mark.parametrize("arch", [CONV, VIT])
def test_bf16_is_another_model_with_another_name(grid, arch):
    builders = [
        grid.builder(f"model.arch={arch}", f"evaluate.precision={p}") for p in ("fp32", "bf16")
    ]
    exact, rounded = (table(builder, {builder.base.name: 1.0})["margin"] for builder in builders)
    assert 1e-4 < np.abs(exact - rounded).max() < 0.3
    keys = [features.key_of(c, c.base, c.target) for c in builders]
    keys += [passes.key_of(c, {c.base.name: 1.0}, c.target, "all")[1] for c in builders]
    assert [key["precision"] for key in keys] == ["fp32", "bf16, head in fp32"] * 2


@pytest.mark.parametrize("kind", ["bf16", "bf16_residual"])
@pytest.mark.parametrize("arch", [CONV, VIT])
def test_a_student_begins_where_its_teacher_is(grid, arch, kind):
    """In bf16 too: the distillation loss of a model that did not move yet is none."""
    case = prepared(grid, "method=lwf", f"model.arch={arch}", f"train.precision={kind}")
    loop.prepare(case.method, case.builder)
    with torch.no_grad(), case.method.autocast:
        student = case.method.logits(case.batch)
    teacher = case.method.teacher(case.batch)
    assert_near(student, teacher, atol=1e-5)


def test_who_chooses_a_device_turns_tf32_off():
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for place in flags:
        place.allow_tf32 = True
    pick_device("cpu")
    assert not any(place.allow_tf32 for place in flags)


@pytest.mark.parametrize(
    "device, precision, compile", [("cpu", "fp32", "never"), ("cuda", "bf16", "always")]
)
def test_the_form_follows_the_device_unless_it_is_given(device, precision, compile):
    assert Form.of(EvaluateRecipe(), torch.device(device)) == Form(precision, compile)
    given = EvaluateRecipe(precision="fp32", compile="never")
    assert Form.of(given, torch.device(device)) == Form("fp32", "never")


SMALL_SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)}


@pytest.mark.parametrize(
    ("arch", "options"), [("swin_tiny_patch4_window7_224", SMALL_SWIN), ("levit_128s", {})]
)
def test_a_backbone_computes_with_the_weights_that_it_is_given(arch, options):
    """Swin has buffers outside its state dict, and LeViT caches what it derives from weights."""
    torch.manual_seed(0)
    *nets, third = (timm.create_model(arch, num_classes=7, **options).eval() for _ in range(3))
    for net in nets:
        for parameter in net.parameters():  # as they begin, biases of attention hardly count
            nn.init.normal_(parameter, std=0.3)
    x, backbone = torch.randn(1, 3, 224, 224), Backbone(third)
    with torch.no_grad():
        for net in nets * 2:
            actual = backbone.given(backbone.state(net.state_dict()), x)
            assert_near(actual, net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, stray", [("0.bias", {}), ("2.bias", {"2.bias": torch.zeros(2)})])
def test_a_weight_that_is_missing_or_unknown_is_refused(name, stray):
    """The network's own random weight must not take its place."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = {k: tensor for k, tensor in net.state_dict().items() if k != name} | stray
    backbone = Backbone(net)
    with pytest.raises(RuntimeError, match=name):
        backbone.given(backbone.state(state), torch.zeros(1, 3, 4, 4))
