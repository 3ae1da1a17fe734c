"""CLIP without an IN-1K stage: the numbers of open_clip's own, on weights that the test draws."""

import dataclasses
import sys

import pytest
import torch

from engine import models
from engine.model_files.weights import load_weights
from engine.models import clip, pretrained
from engine.models.clip import ClassTexts
from engine.models.sources.open_clip import open_model
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe
from engine.store import tensors
from engine.store.artifacts import Store
from helpers.twins import assert_near

NAMES = ["tench", "golden retriever", "airliner"]
TEMPLATES = ["a photo of a {}.", "a drawing of the {}."]


def model(**weights: str) -> ModelRecipe:
    """The published model, with other weights."""
    model = load_recipe("imagenet_rib", parsed(["model=vit_b16_clip_openai_zero_shot"])).model
    return dataclasses.replace(model, weights=dataclasses.replace(model.weights, **weights))


def test_without_open_clip_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"requires open_clip: pip install -e '\.\[clip\]'"):
        clip.package()


def test_weights_of_another_activation_are_refused(tmp_path):
    pytest.importorskip("open_clip", reason="the extra [clip]")
    with pytest.raises(ValueError, match=r"trained with QuickGELU: use ViT-B-16-quickgelu"):
        open_model(model(clip="ViT-B-16"), tmp_path)


@pytest.mark.slow
def test_features_and_logits_are_open_clips_or_the_architecture_is_refused(tmp_path):
    """On open_clip's model with QuickGELU and random weights."""
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).eval()
    tensors.save(clip.state_dict(), path := tmp_path / "open_clip_model.safetensors")
    options, store = model(path=str(path)), Store(tmp_path)
    texts = ClassTexts(tuple(NAMES), tuple(TEMPLATES))
    backbone = pretrained.backbone(options, store, tmp_path / "cache", 0, texts=texts)
    net = models.create(options, len(NAMES)).eval()
    models.load_state(net, load_weights(backbone.file(tensors.WEIGHTS)), "cell")
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected_features = clip.encode_image(x, normalize=True)
        assert_near(models.features(net, x), expected_features, atol=1e-4)
        classifier_EC = open_clip.build_zero_shot_classifier(
            clip, open_clip.get_tokenizer("ViT-B-16-quickgelu"), NAMES, TEMPLATES
        )
        expected = clip.logit_scale.exp() * expected_features @ classifier_EC
        assert_near(net(x), expected, atol=1e-4)
    assert not models.head(net).bias.any()
    plain = dataclasses.replace(options, arch="vit_base_patch16_clip_224.openai")
    with pytest.raises(ValueError, match=r"from open_clip's ViT-B-16-quickgelu"):
        pretrained.backbone(plain, store, tmp_path / "cache", 0, texts=texts)
