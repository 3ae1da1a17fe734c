"""A model is itself, whichever way it is evaluated; heads, and what is called fp32, are in fp32."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from grids import CONV, VIT, grid, prepared

from engine import models
from engine.errors import RecipeError
from engine.evaluation import features, passes
from engine.grid.build import Builder
from engine.machine import precision, ranks
from engine.recipe.schema import ModelRecipe
from engine.store import cells

__all__ = ["grid"]
CPU = torch.device("cpu")
SET = "outline"


def table(builder: Builder, mix: cells.Mix) -> dict[str, np.ndarray]:
    """The stored predictions of a mix on a set."""
    passes.evaluate(builder.run, [mix], [SET], "all")
    stored = pq.read_table(passes.predicted(builder.run, mix, SET, "all"))
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
    keys = [features.key_of(c.run, c.base, c.target) for c in builders]
    keys += [passes.key_of(c.run, {c.base.name: 1.0}, c.target, "all")[1] for c in builders]
    assert [key["precision"] for key in keys] == ["fp32", "bf16, head in fp32"] * 2
    train = grid.builder("train.precision=bf16").key()["train"]
    assert train["precision"] == "bf16, head in fp32", "its head learns in another precision too"


@pytest.mark.parametrize("arch", [CONV, VIT, "test_resnet", "test_convnext"])
def test_a_head_computes_in_fp32_under_autocast(arch):
    torch.manual_seed(0)
    net = models.create(ModelRecipe(name="m", arch=arch, image_size=64), 7).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad(), precision.autocast("bf16", CPU):
        features, logits = models.features(net, x), net(x)
    head = models.head(net)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.nn.functional.linear(features.float(), head.weight, head.bias))


def test_a_second_head_is_refused():
    with pytest.raises(RecipeError, match=r"volo_d1_224 has the heads \('head', 'aux_head'\)"):
        models.create(ModelRecipe(name="m", arch="volo_d1_224", image_size=224), 7)


@pytest.mark.parametrize("arch", [CONV, VIT])
def test_a_student_begins_where_its_teacher_is(grid, arch):
    """In bf16 too: the distillation loss of a model that did not move yet is none."""
    case = prepared(grid, "method=lwf", f"model.arch={arch}", "train.precision=bf16")
    with torch.no_grad(), case.method.autocast:
        student = case.method.logits(case.batch)
    teacher = case.method.teacher(case.batch.index)
    torch.testing.assert_close(student, teacher, rtol=0, atol=1e-5)


def test_who_chooses_a_device_turns_tf32_off():
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for place in flags:
        place.allow_tf32 = True
    ranks.pick_device("cpu")
    assert not any(place.allow_tf32 for place in flags)
