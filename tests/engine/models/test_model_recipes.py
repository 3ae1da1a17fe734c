"""The benchmark's models, without a download: names, transforms, and a step of every method."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import timm
import torch

from engine import models
from engine.methods.base import Trained
from engine.recipe import image_transform
from engine.recipe.campaigns import each_model, methods_of
from engine.recipe.catalogue import ROOT
from engine.recipe.methods import METHODS
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import MethodRecipe, ModelRecipe
from engine.report.published import PublishedModel, read_published
from helpers.untrained import untrained
from loaders.batches import Batch

HALF = ([0.5] * 3, [0.5] * 3)
IN1K = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
NOTHING = ([0.0] * 3, [1.0] * 3)
# The size that the shorter side is resized to before the crop of 224, how, mean and std.
AUGREG = (248, "bicubic", HALF)
TORCHVISION = (256, "bilinear", IN1K)
TRANSFORMS = {
    "vit_b16_augreg_in1k": AUGREG,
    "vit_b16_sam_in1k": AUGREG,
    "vit_b16_orig_in21k": AUGREG,
    "vit_b16_miil_in21k": (256, "bilinear", NOTHING),
    "vit_b16_augreg_in21k": AUGREG,
    "vit_b16_clip_openai": (248, "bicubic", CLIP),
    "vit_b16_clip_laion2b": (224, "bicubic", CLIP),
    "vit_b16_clip_openai_zero_shot": (224, "bicubic", CLIP),
    "vit_b16_clip_laion2b_zero_shot": (224, "bicubic", CLIP),
    "vit_s16_augreg_in1k": AUGREG,
    "vit_s16_augreg_in21k": AUGREG,
    "vit_s32_augreg_in21k": AUGREG,
    "vit_b32_augreg_in1k": AUGREG,
    "vit_b32_sam_in1k": AUGREG,
    "vit_b32_augreg_in21k": AUGREG,
    "vit_b32_clip_openai": (248, "bicubic", CLIP),
    "vit_b32_clip_laion2b": (248, "bicubic", CLIP),
    "vit_l16_augreg_in21k": AUGREG,
    "resnet18": TORCHVISION,
    "resnet34": TORCHVISION,
    "resnet50": TORCHVISION,
    "resnet101": TORCHVISION,
}
# Backbones whose head is fitted: the part of the shorter side that is left, how, mode, mean, std,
# as in their authors' code: facebookresearch/dinov3, google/siglip2-base-patch16-224 on the Hub and
# facebookresearch/perception_models.
HEADLESS = {
    "vit_b16_dinov3": (0.875, "bicubic", "center", IN1K),
    "vit_b16_siglip2": (1.0, "bilinear", "squash", HALF),
    "vit_b16_pe_core": (1.0, "bilinear", "squash", HALF),
}
FAMILIES = (  # plain ViT, without a qkv bias, CLIP's with norm_pre, its projection, convolutions
    "vit_s16_augreg_in1k",
    "vit_b16_miil_in21k",
    "vit_b16_clip_laion2b",
    "vit_b16_clip_openai_zero_shot",
    "resnet18",
)
SIZE, CLASSES = 64, 5


def model(name: str) -> ModelRecipe:
    return load_recipe("imagenet_rib", parsed([f"model={name}"])).model


@pytest.mark.parametrize("name", TRANSFORMS)
def test_name_resolves_and_gives_the_published_transform(name):
    options = model(name)
    assert options.name == name
    assert options.arch in timm.list_pretrained()
    resize, interpolation, (mean, std) = TRANSFORMS[name]
    transform, config = image_transform.transform(options), image_transform.data_config(options)
    assert transform.image_size == 224
    assert math.floor(224 / transform.crop) == resize
    assert (transform.interpolation, transform.crop_mode) == (interpolation, "center")
    np.testing.assert_allclose(config["mean"], mean)
    np.testing.assert_allclose(config["std"], std)
    outputs = timm.get_pretrained_cfg(options.arch).num_classes
    assert outputs == (512 if options.projection else 1000)  # CLIP's embedding has 512


@pytest.mark.parametrize("name", HEADLESS)
def test_backbones_without_a_head_have_their_authors_transform(name):
    options = model(name)
    assert options.arch in timm.list_pretrained() and options.head.fit and not options.projection
    transform, config = image_transform.transform(options), image_transform.data_config(options)
    *expected, (mean, std) = HEADLESS[name]
    assert [transform.crop, transform.interpolation, transform.crop_mode] == expected
    assert transform.image_size == 224
    np.testing.assert_allclose(config["mean"], mean)
    np.testing.assert_allclose(config["std"], std)


def test_convolutions_see_channels_last_images():
    """Inductor leaves their layout as it is where the batch's size is free."""
    for name in TRANSFORMS:
        assert model(name).channels_last == name.startswith("resnet"), name


def test_published_numbers_are_those_of_the_slides():
    """Accuracies in recipes, and the mRI that their first lines show."""
    numbers = read_published()
    slides = {of.recipe: of for of in numbers.models.values()}
    without = {"resnet50", "resnet101", "vit_b16_clip_openai_zero_shot"}  # of another transform
    assert {name for name in TRANSFORMS if "imagenet_val" not in model(name).published} == without
    for name in (n for n in TRANSFORMS if "zero_shot" not in n):
        on_slides, options = slides.get(name, PublishedModel()), model(name)
        assert bool(on_slides.before) == name.startswith("vit_b16")
        if before := on_slides.before:
            assert options.arch == on_slides.timm
            assert options.published == {k: before[v] for k, v in numbers.sets.items()}
        text = " ".join((ROOT / "models" / f"{name}.yaml").read_text().split("\n# "))
        _, is_published, after = text.partition("mRI on the slides, over eight sets: FT ")
        shown = [float(v) for v in re.findall(r"(-?\d+\.\d)[,.] ?", after)[:9]]
        assert shown == [*on_slides.mri.values()], name
        assert is_published or "No mRI is published for it." in text


STEPS = [*((n, "original") for n in TRANSFORMS | HEADLESS), *((n, "released") for n in FAMILIES)]
ALWAYS = {("vit_s16_augreg_in1k", "original"), ("resnet18", "released")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [pytest.param(*s, marks=() if s in ALWAYS else pytest.mark.exhaustive) for s in STEPS],
)
def test_a_step_of_every_method(name, variant):
    """Each architecture as it is, on images of 64 px: fewer tokens, the same layers."""
    words = (f"model={name}", f"model.image_size={SIZE}", "train.batch_size=2")
    words += (f"method.variant={variant}",)
    torch.manual_seed(0)
    net = models.create(load_recipe("imagenet_rib", parsed(words)).model, CLASSES).eval()
    pixels = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    batch = Batch(np.arange(2), pixels.device, lambda: pixels)
    trained = []
    for key in methods_of("imagenet_rib"):
        cell = load_recipe("imagenet_rib", parsed(words), method=key)
        method = METHODS.find(cell.method.module).Method(cell.method)
        on_convolutions = (key, variant, name[:6]) == ("lora", "released", "resnet")
        if not isinstance(method, Trained) or on_convolutions:  # which it refuses
            continue
        method.prepare(copy.deepcopy(net), untrained(net, cell))
        method.train()
        loss = method(batch)
        assert loss.shape == (2,) and loss.isfinite().all(), key
        loss.sum().backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert any(g.any() for g in gradients) and all(g.isfinite().all() for g in gradients), key
        models.load_state(models.create(cell.model, CLASSES), method.export().state, key)
        trained.append(key)
    assert len(trained) == (6 if (name, variant) == ("resnet18", "released") else 7)


def test_settings_are_the_papers_and_its_campaign_is_the_other_with_what_the_code_does():
    resolved = load_recipe("imagenet_rib")
    o, t = resolved.optimizer, resolved.train
    assert (o.name, o.lr, o.momentum, o.weight_decay) == ("sgd", 1e-3, 0.9, 0.0)
    assert (t.epochs, t.batch_size, t.warmup_steps, t.clip, resolved.seed) == (10, 64, 196, 0.0, 0)
    assert resolved.dataset.holdout == 0 and resolved.method.variant == "original"
    words = ("method.variant=released", "evaluate.precision=fp32", "dataset.objectnet=released")
    methods = methods_of("imagenet_rib")
    assert methods_of("imagenet_rib_released") == methods
    assert len(methods) == 9 and len(resolved.dataset.sets) == 8
    fields = [field.name for field in dataclasses.fields(MethodRecipe)]  # EWC's options aside
    for method in methods:
        released = load_recipe("imagenet_rib_released", method=method)
        original = load_recipe("imagenet_rib", parsed(words), method=method)
        assert (released.method.name, released.optimizer, released.train) == (method, o, t)
        for name in fields:
            assert getattr(released.method, name) == getattr(original.method, name)
        same = {"campaign": "", "method": original.method}
        assert dataclasses.replace(released, **same) == dataclasses.replace(original, **same)


@pytest.mark.parametrize("name", ["imagenet_rib", "imagenet_rib_released"])
def test_all_models_are_the_seven_pre_trainings(name):
    grids = each_model(name, parsed(("seed=3", "model=all")))
    archs = {load_recipe(name, grid).model.arch for grid in grids}
    assert len(grids) == 7 and all(grid[0].text == "seed=3" for grid in grids)
    assert archs == {s.timm for s in read_published().models.values() if s.timm}
    listed = each_model("emoji", parsed(("seed=3", "model=[resnet18, my own/model.yaml]")))
    words = [[override.text for override in each] for each in listed]
    assert words == [["seed=3", "model=resnet18"], ["seed=3", "model=my own/model.yaml"]]


def test_names_of_open_clip_resolve():
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    for name in (n for n in TRANSFORMS if "zero_shot" in n):
        weights = model(name).weights
        assert (weights.clip, weights.tag) in open_clip.list_pretrained()
        assert open_clip.get_model_config(weights.clip)["embed_dim"] == model(name).projection
