"""Models: pixels exactly as timm makes them, wrong weights refused, logits = head(features)."""

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
from engine.machine import precision
from engine.recipe import image_transform
from engine.recipe.schema import ModelRecipe
from helpers.twins import assert_near

SQUASHED = "convnext_base.fb_in22k_ft_in1k_384"
ARCHS = ("vit_base_patch16_224.augreg_in21k", "tf_efficientnet_lite0", SQUASHED)
TINY = ("test_vit", "test_efficientnet", "test_resnet", "test_convnext")
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
    made = create_transform(**config, is_training=False, **options)(image)
    assert isinstance(made, torch.Tensor)
    return made


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
    transform, size = image_transform.transform(options), options.image_size
    for width, height in SHAPES:
        image = photo(width, height)
        pixels = transform(image)
        expected = np.asarray(timms(image, options, normalize=False)).transpose(1, 2, 0)
        assert pixels.dtype == np.uint8 and pixels.shape == (size, size, 3)
        assert pixels.flags["C_CONTIGUOUS"] and np.array_equal(pixels, expected)
        pixels_CHW = torch.from_numpy(pixels).permute(2, 0, 1)
        normalised = models.Normalize(options, CPU)(pixels_CHW[None])[0]
        assert_near(normalised, timms(image, options), atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_unnormalised_pixels_are_exact_and_in_the_recipes_memory_format(channels_last):
    """MIIL's mean is 0, and its std 1."""
    options = recipe("test_vit", mean=[0.0] * 3, std=[1.0] * 3, channels_last=channels_last)
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256).contiguous()
    actual = models.Normalize(options, CPU)(pixels)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert actual.dtype == torch.float32 and actual.is_contiguous(memory_format=layout)
    torch.testing.assert_close(actual.double(), pixels.double() / 255, rtol=0, atol=1e-7)


def test_a_transform_is_named_by_what_determines_the_pixels():
    usual = {"image_size": 32, "interpolation": "bicubic", "crop": 0.9}
    options = {"crop": 0.9, "interpolation": "bicubic", "crop_mode": "center"}
    for arch in ARCHS:
        assert image_transform.transform(recipe(arch, **options)).spec == usual, (
            "as older packs are named"
        )
    squashed = image_transform.transform(recipe(ARCHS[0], **options | {"crop_mode": "squash"}))
    assert squashed.spec == usual | {"crop_mode": "squash"}
    assert pickle.loads(pickle.dumps(squashed)) == squashed  # it goes to encoding processes


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("arch", "projection"), [*((arch, 0) for arch in TINY), ("test_vit", 24)])
def test_head_of_features_is_the_model_to_the_bit_and_in_fp32(arch, projection, kind):
    torch.manual_seed(0)
    options = recipe(arch, projection=projection)
    net = models.create(options, 7).eval()
    x, head = torch.randn(5, 3, 32, 32), models.head(net)
    with torch.no_grad(), precision.autocast(kind, CPU):
        features, logits = models.features(net, x), net(x)
    assert features.shape == (5, head.in_features) and logits.dtype == torch.float32
    assert torch.equal(logits, nn.functional.linear(features.float(), head.weight, head.bias))
    if projection:
        torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    state, (weight, bias) = net.state_dict(), models.head_names(options)
    assert torch.equal(state[weight], head.weight) and state[bias].shape == (7,)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet5", {}, "timm has no architecture 'resnet5'; did you mean 'resnet50'"),
        ("deepseek_vit_412m", {}, r"crop_mode=border.*add model\.crop_mode=center or "),
        ("volo_d1_224", {}, r"volo_d1_224 has several heads, \('head', 'aux_head'\)"),
        ("caformer_s18", {}, r"(?s)head of MetaFormer is .*not a linear"),
        ("test_resnet", {"projection": 24}, r"model\.projection: test_resnet cannot have"),
        (
            "vit_tiny_patch16_224",
            {"image_size": 40},
            "image_size=40: vit_tiny_patch16_224 requires",
        ),
    ],
)
def test_what_cannot_be_a_model_is_refused(arch, options, message):
    with pytest.raises(RecipeError, match=message):
        image_transform.transform(recipe(arch, **options))
        models.create(recipe(arch, **options), 3)


@pytest.mark.parametrize(
    ("arch", "classes", "message"),
    [
        ("test_resnet", 4, "cls_token is missing; .* and [0-9]+ more: give weights of the same"),
        ("test_vit", 5, r"extra is unexpected; head\.weight is \[5, 64\], not \[4, 64\]"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_not_taken(arch, classes, message):
    net = models.create(recipe("test_vit"), 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = models.create(recipe(arch), classes).state_dict() | {"extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=f"^cell-17 does not fit VisionTransformer: {message}"):
        models.load_state(net, other, "cell-17")
    quantised = before | {"head.weight": (before["head.weight"] * 100).to(torch.int64)}
    with pytest.raises(ValueError, match=r"head\.weight holds whole numbers \(torch\.int64\)"):
        models.load_state(net, quantised, "cell-17")
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
