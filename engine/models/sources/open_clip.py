"""Weights of open_clip's hub: zero-shot CLIP, whose text tower makes the head of the vision tower.

The result is a timm ViT (projection to unit vectors, then a linear head), or open_clip's vision
tower with such a head, so every method, merge and evaluation works on it. The text tower runs
once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from engine import models
from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.model_files.weights import load_weights, weights_file
from engine.models import clip, hub_errors
from engine.models.clip import ClassTexts, imagenets_texts
from engine.recipe.schema import ModelRecipe, WeightsRecipe

log = logging.getLogger(__name__)

CLASSES_AT_ONCE = 4  # with 80 prompts each: below 2 GB of activations in the text tower
TOLERANCE = 1e-3  # of unit embeddings; a wrong activation function changes them far more


def fetch(recipe: ModelRecipe, cache: Path, texts: ClassTexts | None = None) -> nn.Module:
    """The recipe's model with open_clip's weights and a zero-shot head.

    The head is the mean over templates of the unit text features of each class's words, normalized
    again, times exp(logit_scale), without bias; the logits equal open_clip's (Radford et al. 2021,
    3.1.2). texts: None for ImageNet-1K's.

    Raises ValueError without the open_clip package, for weights that do not fit, and for a tower
    whose features differ from open_clip's; RecipeError for unknown names, and for the plain-GELU
    name of weights that were trained with QuickGELU.
    """
    texts = texts or imagenets_texts(recipe.weights)
    model = open_model(recipe, cache)
    net = models.create(recipe, len(texts.words))
    if isinstance(net, clip.Tower):
        tower = {k: v for k, v in model.state_dict().items() if k.startswith("visual.")}
    else:
        tower = checkpoint_filter_fn(model.state_dict(), net)  # type: ignore[arg-type]
        tower["fc_norm.linear.weight"] = tower.pop("head.weight")
    source = f"open_clip's {recipe.weights.clip} ({recipe.weights.path or recipe.weights.tag})"
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # for 80,000 prompts
    tower["head.weight"] = head(model, recipe.weights.clip, texts)
    model.to("cpu")
    tower["head.bias"] = torch.zeros(len(tower["head.weight"]))
    models.load_state(net, tower, source)
    _check_tower(model, net, recipe)
    return net


def open_model(recipe: ModelRecipe, cache: Path) -> Any:
    """open_clip's model with both towers, in fp32 and eval mode, on the CPU.

    Its weights are those of the recipe's file, under open_clip's names, or come from its hub.
    """
    open_clip, weights = clip.package(), recipe.weights
    _check_names(open_clip, weights)
    if weights.path:
        state = load_weights(weights_file(weights.path))
        return models.load_state(clip.blank(weights.clip), state, weights.path)
    try:
        model = open_clip.create_model(
            weights.clip, weights.tag, cache_dir=str(cache / "open_clip")
        )
    except hub_errors.ERRORS as error:
        raise ValueError(
            f"open_clip could not load weights for {weights.clip} {weights.tag} "
            f"({hub_errors.reason(error)}). Without access to the hub, download "
            "open_clip_model.safetensors on another machine and set model.weights.path=FILE"
        ) from error
    return model.eval()


def open_on(device: torch.device, recipe: ModelRecipe) -> Any:
    """A new copy of `open_model`'s model on a device; the first rank downloads it for all."""
    return ranks.first(lambda: open_model(recipe, cache_folder())).to(device)


def head(model: Any, name: str, texts: ClassTexts) -> torch.Tensor:
    """Head [C, E] (float32, CPU), one row per class.

    model: open_clip's model `name`, in eval mode; only its text tower is used, on its device.
    """
    log.info(
        "zero-shot head: %d classes in %d sentences each, such as %r",
        len(texts.words),
        len(texts.templates),
        texts.templates[0].format(texts.words[0]),
    )
    open_clip = clip.package()
    unit_EC = open_clip.build_zero_shot_classifier(
        model,
        open_clip.get_tokenizer(name),
        texts.words,
        texts.templates,
        num_classes_per_batch=CLASSES_AT_ONCE,
        device=model.logit_scale.device,
        use_tqdm=True,
    )
    return (model.logit_scale.detach().exp() * unit_EC.T).float().cpu()


def _check_names(open_clip: ModuleType, weights: WeightsRecipe) -> None:
    config = clip.config(weights.clip)
    if weights.path and not weights.tag:  # the user's weights
        if (quick := f"{weights.clip}-quickgelu") in open_clip.list_models():
            log.warning(
                "%s uses GELU; weights fine-tuned from OpenAI's require %s", weights.clip, quick
            )
        return
    tags = open_clip.list_pretrained_tags_by_model(weights.clip)
    if weights.tag not in tags:
        raise RecipeError(
            f"open_clip has no weights {weights.tag!r} for {weights.clip}"
            f"{nearest(weights.tag, tags)} (model.weights.tag)"
        )
    quick = bool(open_clip.get_pretrained_cfg(weights.clip, weights.tag).get("quick_gelu"))
    if quick != bool(config.get("quick_gelu")):
        name = weights.clip.removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
        raise RecipeError(
            f"model.weights.clip={weights.clip}: the weights {weights.tag} were trained "
            f"{'with' if quick else 'without'} QuickGELU: use {name}"
        )


def _check_tower(model: Any, net: nn.Module, recipe: ModelRecipe) -> None:
    """Compare the features with open_clip's on a random image, if both take its size."""
    size = model.visual.image_size
    if recipe.image_size not in (size if isinstance(size, tuple) else (size,)):
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, recipe.image_size, recipe.image_size, generator=generator)
    with torch.inference_mode():
        expected = model.encode_image(x, normalize=True)
        gap = (models.features(net.eval(), x) - expected).abs().max().item()
    if not gap <= TOLERANCE:
        raise ValueError(
            f"{recipe.arch}'s embedding differs by {gap:.3f} from open_clip's "
            f"{recipe.weights.clip}: "
            "model.arch must be the same architecture, with the same activation function"
        )
