"""Models: pixels exactly as timm makes them, wrong weights refused, logits = head(features)."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import nn

from engine import models
from engine.errors import RecipeError
from engine.recipe.schema import ModelRecipe

SQUASHED = "convnext_base.fb_in22k_ft_in1k_384"
ARCHS = ("vit_base_patch16_224.augreg_in21k", "tf_efficientnet_lite0", SQUASHED)
TINY = ("test_vit", "test_efficientnet", "test_resnet")
CPU = torch.device("cpu")
SHAPES = ((64, 64), (97, 61), (31, 200), (7, 5))


def recipe(arch: str, **options) -> ModelRecipe:
    return ModelRecipe(name="m", arch=arch, **{"image_size": 32} | options)


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    rough = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return rough.resize((width, height), Image.Resampling.BICUBIC)


def timms(image: Image.Image, recipe: ModelRecipe, **options) -> torch.Tensor:
    """What timm itself feeds to the model: resolved for the architecture, from the PIL image."""
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(recipe.arch).to_dict()
    )
    chosen = {"interpolation": recipe.interpolation, "crop_pct": recipe.crop}
    chosen |= {"mean": recipe.mean, "std": recipe.std, "crop_mode": recipe.crop_mode}
    config |= {key: value for key, value in chosen.items() if value is not None}
    config["input_size"] = (3, recipe.image_size, recipe.image_size)
    return create_transform(**config, is_training=False, **options)(image)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 56, "interpolation": "bilinear"},
        {"crop": 1.0, "interpolation": "nearest", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.5, 1.0]},
        {"image_size": 56, "crop": 0.7, "interpolation": "bicubic"},
        {"crop": 0.7, "crop_mode": "squash"},
    ],
)
@pytest.mark.parametrize("arch", ARCHS)
def test_pixels_and_their_normalisation_are_timms(arch, options):
    options = recipe(arch, **options)
    transform, size = models.transform(options), options.image_size
    for width, height in SHAPES:
        image = photo(width, height)
        pixels = transform(image)
        expected = np.asarray(timms(image, options, normalize=False)).transpose(1, 2, 0)
        assert pixels.dtype == np.uint8 and pixels.shape == (size, size, 3)
        assert pixels.flags["C_CONTIGUOUS"] and np.array_equal(pixels, expected)
        pixels_CHW = torch.from_numpy(pixels).permute(2, 0, 1)
        normalised = models.Normalize(options, CPU)(pixels_CHW[None])[0]
        torch.testing.assert_close(normalised, timms(image, options), rtol=0, atol=1e-6)


def test_unnormalised_pixels_are_exact():
    """MIIL's mean is 0, and its std 1."""
    options = recipe("test_vit", mean=[0.0] * 3, std=[1.0] * 3)
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256).contiguous()
    actual = models.Normalize(options, CPU)(pixels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), pixels.double() / 255, rtol=0, atol=1e-7)


def test_a_transform_is_named_by_what_determines_the_pixels():
    usual = {"image_size": 32, "interpolation": "bicubic", "crop": 0.9}
    options = {"crop": 0.9, "interpolation": "bicubic", "crop_mode": "center"}
    for arch in ARCHS:
        assert models.transform(recipe(arch, **options)).spec == usual, "as older packs are named"
    squashed = models.transform(recipe(ARCHS[0], **options | {"crop_mode": "squash"}))
    assert squashed.spec == usual | {"crop_mode": "squash"}
    assert pickle.loads(pickle.dumps(squashed)) == squashed  # it goes to encoding processes


def test_a_way_to_crop_that_packs_lack_is_refused_with_those_they_have():
    with pytest.raises(RecipeError, match=r"crop_mode=border.*add model\.crop_mode=center or "):
        models.transform(recipe("deepseek_vit_412m"))
    models.transform(recipe("deepseek_vit_412m", crop_mode="center"))


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize_gives_the_memory_format_of_the_recipe(channels_last):
    options = recipe("test_efficientnet", channels_last=channels_last)
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    actual = models.Normalize(options, CPU)(pixels)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert actual.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("arch", TINY)
def test_head_of_features_is_the_model_to_the_bit(arch):
    torch.manual_seed(0)
    net = models.create(recipe(arch), 7).eval()
    x = torch.randn(5, 3, 32, 32)
    head = models.head(net)
    with torch.no_grad():
        features = models.features(net, x)
        assert features.shape == (5, head.in_features)
        assert torch.equal(head(features), net(x))
    state, (weight, bias) = net.state_dict(), models.head_names(recipe(arch))
    assert torch.equal(state[weight], head.weight) and state[bias].shape == (7,)


def test_head_that_is_not_linear_is_refused():
    net = models.create(recipe("test_vit"), 7)
    net.reset_classifier(0)  # type: ignore[operator]
    with pytest.raises(RecipeError, match=r"head of VisionTransformer is Identity.*not a linear"):
        models.head(net)


def test_vit_takes_the_recipes_image_size():
    net = models.create(recipe("vit_tiny_patch16_224", image_size=48), 3)
    assert net(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    with pytest.raises(RecipeError, match="image_size=40: vit_tiny_patch16_224 takes multiples of"):
        models.create(recipe("vit_tiny_patch16_224", image_size=40), 3)


def test_unknown_architecture():
    with pytest.raises(RecipeError, match="'resnet5'; did you mean 'resnet50'"):
        models.create(recipe("resnet5"), 3)
    with pytest.raises(RecipeError, match="timm has no architecture"):
        models.transform(recipe("resnet5"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.create(recipe("test_resnet"), 4), "cls_token is missing"),
        (lambda: models.create(recipe("test_vit"), 5), r"head\.weight is \[5, 64\], not \[4, 64\]"),
        (lambda: models.create(recipe("test_vit", image_size=64), 4), "pos_embed is"),
        (lambda: nn.Linear(2, 2), "weight is unexpected|cls_token is missing"),
    ],
)
def test_wrong_weights_are_refused_by_name(build, message):
    net = models.create(recipe("test_vit"), 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        models.load_state(net, build().state_dict(), "cell-17")
    text = str(caught.value)
    assert text.startswith("cell-17 does not fit VisionTransformer") and len(text) < 400
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
