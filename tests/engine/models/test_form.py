"""A model is itself, whichever way it is evaluated; heads, and what is called fp32, are in fp32."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from grids import CONV, VIT, Grid, grid, prepared
from user_checkpoints import checkpoint

from engine import cli, models
from engine.commands import job
from engine.errors import RecipeError
from engine.evaluation import features, passes, user_models
from engine.grid import campaign, jobs
from engine.grid.build import Builder
from engine.machine import precision
from engine.recipe.schema import ModelRecipe
from engine.report import finish as last_job
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
def test_a_model_from_stored_features_is_the_model_from_images(
    grid: Grid, arch: str, words: tuple[str, ...]
) -> None:
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
def test_bf16_is_another_model_with_another_name(grid: Grid, arch: str) -> None:
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
def test_a_head_computes_in_fp32_under_autocast(arch: str) -> None:
    torch.manual_seed(0)
    net = models.create(ModelRecipe(name="m", arch=arch, image_size=64), 7).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad(), precision.autocast("bf16", CPU):
        features, logits = models.features(net, x), net(x)
    head = models.head(net)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.nn.functional.linear(features.float(), head.weight, head.bias))


def test_a_second_head_is_refused() -> None:
    with pytest.raises(RecipeError, match="VOLO adds the logits of a second head"):
        models.create(ModelRecipe(name="m", arch="volo_d1_224", image_size=224), 7)


@pytest.mark.parametrize("arch", [CONV, VIT])
def test_a_student_begins_where_its_teacher_is(grid: Grid, arch: str) -> None:
    """In bf16 too: the distillation loss of a model that did not move yet is none."""
    case = prepared(grid, "method=lwf", f"model.arch={arch}", "train.precision=bf16")
    with torch.no_grad(), case.method.autocast:
        student = case.method.logits(case.batch)
    teacher = case.method.teacher(case.batch.index)
    torch.testing.assert_close(student, teacher, rtol=0, atol=1e-5)


class Started(Exception):
    """Raised where a program would begin its work."""


@pytest.fixture
def tf32(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """TF32 is on, as cuDNN has it by default; a program records the flags when its work begins."""
    flags = {"matmul": torch.backends.cuda.matmul, "cudnn": torch.backends.cudnn}
    before = {name: place.allow_tf32 for name, place in flags.items()}
    for place in flags.values():
        place.allow_tf32 = True
    observed: dict[str, bool] = {}

    def begin(*_words: object, **_options: object) -> None:
        observed.update({name: place.allow_tf32 for name, place in flags.items()})
        raise Started

    monkeypatch.setattr("engine.grid.build.Builder", begin)
    monkeypatch.setattr(user_models, "evaluate", begin)
    for stage in ("prepare", "column"):
        monkeypatch.setattr(jobs, stage, begin)
    monkeypatch.setattr(last_job, "finish", begin)
    column = argparse.Namespace(job=f"column-{SET}")
    plan = argparse.Namespace(device="cpu", modules={}, columns=[column])
    monkeypatch.setattr(campaign, "read", lambda path: plan)
    yield observed
    for name, place in flags.items():
        place.allow_tf32 = before[name]


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare", f"column-{SET}", "report"])
def test_a_program_turns_tf32_off(
    tf32: dict[str, bool], grid: Grid, tmp_path: Path, command: str
) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(Started):
        if command == "train":
            cli.main(["train", "recipe=emoji/fine_tune", "device=cpu", f"runs={tmp_path}"])
        elif command == "evaluate":
            model = str(checkpoint(tmp_path / "A.safetensors", 0))
            words = ["--models", model, "--sets", str(grid.folder / SET), "--arch", VIT]
            cli.main(["evaluate", *words, "device=cpu"])
        else:
            job.run(job.parser().parse_args([command, "--plan", str(tmp_path / "plan.json")]))
    torch.set_num_threads(threads)
    assert tf32 == {"matmul": False, "cudnn": False}
