"""CLIP without an IN-1K stage: the numbers of open_clip's own, on weights that the test draws."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import models, recipe
from engine.errors import RecipeError
from engine.models import checkpoints, clip, formats, zero_shot
from engine.recipe.schema import ModelRecipe, WeightsRecipe
from engine.store import tensors
from engine.store.artifacts import Store

NAMES = ["tench", "golden retriever", "tabby cat", "airliner"]
TEMPLATES = [lambda name: f"a photo of a {name}.", lambda name: f"a drawing of the {name}."]
ZERO_SHOT = ("vit_b16_clip_openai_zero_shot", "vit_b16_clip_laion2b_zero_shot")


def model(name: str) -> ModelRecipe:
    return recipe.load("emoji", [f"model={name}"]).model


def test_without_open_clip_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"needs open_clip: pip install -e '\.\[clip\]'"):
        clip.package()


def test_projection_is_a_unit_vector_and_the_head_stays_in_fp32():
    torch.manual_seed(0)
    tiny = ModelRecipe(name="t", arch="test_vit", image_size=32, projection=24)
    net = models.create(tiny, 7).eval()
    x = torch.randn(3, 3, 32, 32)
    features = models.features(net, x)
    assert features.shape == (3, 24)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert torch.equal(models.head(net)(features), net(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.float32
    with pytest.raises(RecipeError, match=r"model\.projection: test_resnet has no place"):
        models.create(dataclasses.replace(tiny, arch="test_resnet"), 7)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip": "ViT-B-17"}, r"no model 'ViT-B-17'; did you mean 'ViT-B-1"),
        ({"tag": "openay"}, r"no weights 'openay' for ViT-B-16.*did you mean 'openai'"),
        ({"clip": "ViT-B-16"}, r"trained with QuickGELU; use ViT-B-16-quickgelu"),
        ({"clip": "ViT-B-16-quickgelu", "tag": "dfn2b"}, None),
    ],
)
def test_names_that_do_not_fit(changed, message, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    recipe = model(ZERO_SHOT[0])
    recipe = dataclasses.replace(recipe, weights=dataclasses.replace(recipe.weights, **changed))
    if message is None:
        zero_shot._check_names(open_clip, recipe.weights)
        return
    with pytest.raises(RecipeError, match=message):
        zero_shot.open_model(recipe, tmp_path)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    pytest.importorskip("open_clip", reason="the extra [clip]")
    tensors.save({"a": torch.zeros(1)}, path := tmp_path / "mine.safetensors")
    weights = WeightsRecipe(clip="RN50", tag="openai", path=str(path))
    recipe = dataclasses.replace(model(ZERO_SHOT[0]), weights=weights)
    with pytest.raises(RecipeError, match="use RN50-quickgelu"):
        zero_shot.open_model(recipe, tmp_path)
    weights = dataclasses.replace(weights, clip="ViT-B-16", tag="laion2b_s34b_b88k")
    with pytest.raises(ValueError, match=r"mine\.safetensors does not fit CLIP: .* is missing"):
        zero_shot.open_model(dataclasses.replace(recipe, weights=weights), tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """open_clip's QuickGELU model with random weights, and the file they are in."""
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).eval()
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    tensors.save(clip.state_dict(), path)
    return clip, path


@pytest.mark.slow
def test_features_and_logits_are_open_clips(drawn, tmp_path, monkeypatch):
    import open_clip

    clip, path = drawn
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", NAMES)
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", TEMPLATES)
    options = model(ZERO_SHOT[0])
    options = dataclasses.replace(
        options, weights=dataclasses.replace(options.weights, path=str(path))
    )
    backbone = checkpoints.backbone(options, Store(tmp_path), tmp_path / "cache", 0)
    net = models.create(options, len(NAMES)).eval()
    models.load_state(net, formats.load(backbone.file(tensors.WEIGHTS)), "cell")
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected_features = clip.encode_image(x, normalize=True)
        torch.testing.assert_close(models.features(net, x), expected_features, rtol=0, atol=1e-4)
        classifier_EC = open_clip.build_zero_shot_classifier(
            clip, open_clip.get_tokenizer("ViT-B-16-quickgelu"), NAMES, TEMPLATES
        )
        expected = clip.logit_scale.exp() * expected_features @ classifier_EC
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-4)
    assert not models.head(net).bias.any()


@pytest.mark.slow
def test_tower_with_the_plain_gelu_is_refused(drawn, tmp_path, monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", NAMES[:1])
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", TEMPLATES[:1])
    options = dataclasses.replace(
        model(ZERO_SHOT[0]),
        arch="vit_base_patch16_clip_224.openai",
        weights=dataclasses.replace(model(ZERO_SHOT[0]).weights, path=str(drawn[1])),
    )
    with pytest.raises(ValueError, match=r"away from open_clip's ViT-B-16-quickgelu"):
        checkpoints.backbone(options, Store(tmp_path), tmp_path, 0)
