"""`rib verify` reports a difference from published accuracies, beyond the sampling error."""

import shutil

import pytest
import torch

from engine import models
from engine.campaigns import verify
from engine.campaigns.prepare_job import _head, _head_photos
from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.commands import verify as command
from engine.cost import estimate, flops
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe
from engine.store import tensors
from helpers import grids
from helpers.campaigns import plan_of
from helpers.evaluations import by_timm


def test_measured_and_published_are_compared(folder, grid, tmp_path):
    torch.manual_seed(3)
    net = models.create(ModelRecipe(name="m", arch="test_vit", image_size=32), 5)
    file = tmp_path / "five.safetensors"
    tensors.save(net.state_dict(), file)
    words = (
        f"runs={tmp_path}", "model.name=mine", "model.head.fit=false", "model.weights.source=file",
        f"model.weights.path={file}",
    )  # fmt: skip

    def builder(*more: str) -> Builder:
        cell = plan_cell(str(folder / "shapes.yaml"), parsed((*words, *more)))
        return Builder(cell, grid.device)

    first = builder()
    with pytest.raises(ValueError, match="no dataset of shapes is encoded for mine"):
        verify.verify(first)
    for name in ("upstream", "few"):
        assert first.sets[name]
    assert verify.encoded(first.recipe, first.recipe.dataset.evaluated_sets) == ["upstream", "few"]
    checks = {check.name: check for check in verify.verify(first)}
    assert checks["tinted"].why_not == "not encoded" and checks["tinted"].measured is None
    assert checks["few"].images == 3 * grids.COPIES
    logits, truth = by_timm(grid, "few", first.base.state())
    right = logits.argmax(1) == truth
    assert checks["few"].measured == pytest.approx(100 * right.double().mean().item())
    half = checks["few"].half_width
    assert 5 < half < 45 and f" ±{half:.1f}" in command.text("mine", list(checks.values()))
    for off, differs in ((0.2, False), (0.5, True), (-40, True)):
        published = f"model.published.few={checks['few'].measured + off}"
        compared = verify.verify(builder(published))
        assert [check.differs for check in compared if check.name == "few"] == [differs]
        assert ("DIFFERS by more than 0.3" in command.text("mine", compared)) == differs
    assert "not encoded" in command.text("mine", compared)


def test_what_is_compared_with_what_is_published():
    """Not two readings of ObjectNet; a part of the images is allowed its sampling error."""
    corrected = load_recipe("imagenet_rib", parsed(["model=vit_b16_augreg_in1k"]))
    released = load_recipe(
        "imagenet_rib", parsed(["model=vit_b16_augreg_in1k", "dataset.objectnet=released"])
    )
    assert "dataset.objectnet=released" in verify._why_not(corrected, "objectnet", 33.0)
    assert not verify._why_not(released, "objectnet", 33.0)
    assert verify._sampling(released, "imagenet_v2", 10_000, 50.0) == 0
    assert verify._sampling(released, "imagenet_c", 50_000, 50.0) == pytest.approx(0.447, abs=1e-3)
    assert verify.AccuracyCheck("imagenet_a", 5, float("nan"), 10.0, 0.3).differs


def test_images_that_fitted_the_head_are_not_evaluated(folder, grid, tmp_path):
    name, words = str(folder / "shapes.yaml"), (f"runs={tmp_path}",)
    first = Builder(plan_cell(name, parsed(words)), grid.device)
    upstream = first.sets["upstream"]
    check, *_ = verify.verify(first)
    assert 0 < check.images == len(upstream.holdout) < len(upstream.labels)
    assert "upstream (held-out)" in command.text("tiny", [check])
    whole = plan_cell(name, parsed((*words, "dataset.holdout=0")))
    check, *_ = verify.verify(Builder(whole, grid.device))
    assert check.images == len(upstream.labels)
    assert (
        check.why_not == "35 show photos that fitted the head; model.head.fit_on names other ones"
    )


def test_a_head_is_fitted_on_photos_that_judge_nothing(folder, grid, tmp_path, monkeypatch):
    """Sets of one file name have the same photos: `few` and `outline` those of `upstream`."""
    monkeypatch.setattr(flops, "forward_tflops", lambda *_: 1.0)  # takes a second
    images = shutil.copytree(folder / "images", tmp_path / "images")
    for path in [*(images / "tinted").rglob("*.png")]:
        path.rename(path.with_name(f"other-{path.name}"))
    words = (
        f"runs={tmp_path / 'runs'}", f"dataset.root={images}", "dataset.sets=[outline,few]",
        "dataset.train_sets=[tinted]", "dataset.holdout=0",
        "dataset.sources=names",
    )  # fmt: skip
    name, bases = str(folder / "shapes.yaml"), []
    for more, seen in (((), (35, 35, 21)), (("model.head.fit_on=tinted",), (0, 0, 0))):
        plan = plan_of(name, *words, *more)
        assert plan.needed == ["upstream", "outline", "few", *(["tinted"] if more else [])]
        assert list(estimate.campaign_cost(plan.recipes, len(plan.rows)).images) == plan.needed
        builder = Builder(plan_cell(name, parsed((*words, *more))), grid.device)
        bases.append(builder.base.name)
        for each in plan.needed[:3]:
            assert builder.sets[each]
        checks = verify.verify(builder)
        told = [
            f"{count} show photos that fitted" if count else "nothing published" for count in seen
        ]
        assert all(map(str.startswith, [check.why_not for check in checks], told))
        assert bool(_head_photos(builder)) == any(seen)
        assert f"fitted on {'tinted' if more else 'upstream'}" in _head(builder)
    assert bases[0] != bases[1]


def test_an_accuracy_is_one_of_two_that_were_published_or_differs():
    def check(measured: float, *, fits_timm: bool = True) -> verify.AccuracyCheck:
        return verify.AccuracyCheck(
            "v2", 10_000, measured, 75.7, 0.3, timm=76.1, fits_timm=fits_timm
        )

    assert not check(75.6).differs and not check(76.1).differs and check(77.0).differs
    text = command.text("m", [check(76.2)])
    assert "76.1" in text and "+0.1" in text and "as timm's" in text
    assert "as published" in command.text("m", [check(75.6)])
    assert check(76.2, fits_timm=False).differs, "timm's are of other images"
    assert "timm's" not in command.text("m", [verify.AccuracyCheck("v2", 9, 75.0, 75.1, 0.3)])


def test_timms_accuracies_are_compared_where_images_are_seen_as_there():
    def differences(*words: str) -> str:
        return verify.differences(load_recipe("imagenet_rib", parsed(words)).model)

    assert verify.timms(load_recipe("imagenet_rib", parsed(["model=resnet50"])).model)
    known = verify.timms(load_recipe("imagenet_rib", parsed(["model=vit_b16_clip_openai"])).model)
    assert known["imagenet_v2"] == pytest.approx(76.1) and "objectnet" not in known
    assert differences("model=vit_b16_clip_openai") == ""
    other = differences("model=vit_b16_clip_openai", "model.image_size=384", "model.crop=0.8")
    assert other.startswith("image_size 384 (timm: 224), crop 0.8 (timm: 0.9)")
    file = "model.weights.path=x.safetensors"
    words = ["model=vit_b16_clip_openai", file]
    assert verify.timms(load_recipe("imagenet_rib", parsed(words)).model) == {}, "other weights"
