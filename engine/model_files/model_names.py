"""Find models by their names in timm, the hub, torchvision, open_clip, or by folder.

| name | model |
|---|---|
| `NAME`, `timm/NAME`, `timm:NAME`, `hf-hub:timm/NAME` | timm's, with weights |
| `torchvision:NAME`, `torchvision:NAME/IMAGENET1K_V1` | torchvision's weights, as timm has them |
| `open_clip:NAME/TAG` | open_clip's vision tower with its zero-shot head |
| `local-dir:FOLDER` | a folder that timm, open_clip or `rib export` wrote |

The lookup uses the installed packages and local files; it downloads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.model_files import descriptions
from engine.model_files.architectures import (
    OPEN_CLIP,
    open_clip_config,
    open_clip_name,
    open_clip_package,
    side_of,
)

IMAGENET_CLASSES = 1000
TIMM, TORCHVISION, LOCAL = "timm:", "torchvision:", "local-dir:"
HUBS = ("hf-hub:", "hf_hub:")
# Image-text pairs seen in pretraining, by the tag of weights that do not name it as `_s13b_` does:
# 32 (e31: 31) epochs over 400 million pairs.
SAMPLES_SEEN = {tag: 12_800_000_000 for tag in ("openai", "laion400m_e32")}
SAMPLES_SEEN |= {"laion400m_e31": 12_400_000_000}
VERSIONS = {"IMAGENET1K_V2": "tv2_in1k", "IMAGENET1K_V1": "tv_in1k"}  # torchvision's, timm's
REGNETS = {  # torchvision counts operations in megaflops and gigaflops, timm in hundreds
    "400mf": "004", "800mf": "008", "1_6gf": "016", "3_2gf": "032",
    "8gf": "080", "16gf": "160", "32gf": "320",
}  # fmt: skip


def parse_model_name(name: str) -> tuple[str, str]:
    """The scheme of a name (`timm:`, `torchvision:`, `open_clip:`, `local-dir:`, or empty for a
    plain name), and the rest.

    Raises RecipeError for a hub's repository that is not timm's.
    """
    hub = next((prefix for prefix in HUBS if name.startswith(prefix)), "")
    rest = name.removeprefix(hub)
    if rest.startswith("timm/"):
        return TIMM, rest.removeprefix("timm/")
    if hub:
        raise RecipeError(
            f"{name}: only timm's own repositories are supported ({hub}timm/NAME). "
            f"Download the files, `hf download {rest} config.json model.safetensors "
            "--local-dir FOLDER`, and use local-dir:FOLDER"
        )
    scheme = next((s for s in (TIMM, TORCHVISION, OPEN_CLIP, LOCAL) if name.startswith(s)), "")
    return scheme, name.removeprefix(scheme)


def model_section(name: str) -> dict[str, Any] | None:
    """Returns the recipe section `model` for a name, or None if it is no model's.

    Raises RecipeError for an unknown name of a known form, and for a model that the engine does not
    support; ValueError for a folder that neither timm nor open_clip wrote.
    """
    scheme, rest = parse_model_name(name)
    if scheme in ("", TIMM):
        return _timm(rest, must_exist=bool(scheme))
    return {TORCHVISION: _torchvision, OPEN_CLIP: _open_clip, LOCAL: _local}[scheme](rest)


def architecture(name: str) -> tuple[str, dict[str, Any]]:
    """The architecture of a name, and its transform's settings by recipe key, without weights.

    `open_clip:NAME` needs no tag here. Raises as `model_section`.
    """
    scheme, rest = parse_model_name(name)
    if scheme in ("", TIMM):
        return rest, {}
    if scheme == OPEN_CLIP and "/" not in rest:
        return name, {}
    values = model_section(name) or {}
    keys = ("image_size", "mean", "std", "interpolation", "crop", "crop_mode", "projection")
    settings = {f"model.{key}": values[key] for key in keys if key in values}
    tag = values.get("weights", {}).get("tag")
    return values["arch"], settings | ({"model.weights.tag": tag} if tag else {})


def _timm(name: str, *, must_exist: bool) -> dict[str, Any] | None:
    """An architecture of timm with weights, at its input size."""
    import timm  # imported here: it loads torch, which recipes in files do not need

    known = timm.list_pretrained()
    is_known = name in known if "." in name else timm.is_model(name)
    config = timm.get_pretrained_cfg(name) if is_known else None
    if config is None or not config.has_weights:
        if must_exist:
            raise RecipeError(f"timm has no weights {name!r}{nearest(name, known)}")
        return None
    head = {} if config.num_classes == IMAGENET_CLASSES else {"fit": True}
    size = side_of(name, config.input_size)
    return {"name": name, "arch": name, "image_size": size, "head": head}


def _torchvision(name: str) -> dict[str, Any]:
    """The newest weights of torchvision's model unless a version is named, at its test size."""
    import timm

    of, _, version = name.partition("/")
    if version and version not in VERSIONS:
        raise RecipeError(f"torchvision:{name}: the weights must be {' or '.join(VERSIONS)}")
    kind, _, flops = of.removeprefix("regnet_").partition("_")  # of `regnet_y_1_6gf`
    regnet = f"regnet{kind}_{REGNETS.get(flops)}"
    bases = [of, f"{regnet}_tv", regnet] if of.startswith("regnet_") else [of]
    tags = [VERSIONS[version]] if version else list(VERSIONS.values())
    known = timm.list_pretrained()
    found = next((f"{b}.{t}" for t in tags for b in bases if f"{b}.{t}" in known), None)
    if found is None:
        names = sorted({k.partition(".")[0] for k in known if k.endswith(tuple(VERSIONS.values()))})
        raise RecipeError(
            f"torchvision:{name}: timm has no torchvision weights of this name{nearest(of, names)}"
        )
    config = timm.get_pretrained_cfg(found)
    assert config is not None  # it is listed
    values = {"name": found, "arch": found, "head": {}}
    values["image_size"] = side_of(found, config.test_input_size or config.input_size)
    return values | ({"crop": config.test_crop_pct} if config.test_crop_pct else {})


def _open_clip(name: str) -> dict[str, Any]:
    """An open_clip tower with the weights of a tag and a zero-shot head.

    The weights determine the activation: as in open_clip, a name without `-quickgelu` gets it if
    they were trained with QuickGELU.
    """
    of, _, tag = name.partition("/")
    open_clip = open_clip_package()
    config = open_clip_config(of)
    tags = open_clip.list_pretrained_tags_by_model(of)
    if tag not in tags:
        raise RecipeError(
            f"open_clip:{of}/{tag}: open_clip has no such weights{nearest(tag, tags)}. Known tags: "
            f"{', '.join(tags) or 'none for this model'}"
        )
    is_quick = open_clip.get_pretrained_cfg(of, tag).get("quick_gelu")
    quick = f"{of}-quickgelu"
    if is_quick and not config.get("quick_gelu") and quick in open_clip.list_models():
        of = quick
    size = config["vision_cfg"]["image_size"]
    side = side_of(of, (3, *(size if isinstance(size, list | tuple) else (size, size))))
    return {
        "name": f"{of}.{tag}",
        "arch": f"{OPEN_CLIP}{of}",
        "image_size": side,
        "weights": {"source": "open_clip", "clip": of, "tag": tag},
        "head": {},
        "samples_seen": _samples_seen(tag),
    }


def _samples_seen(tag: str) -> int:
    """The pairs that weights saw in pretraining; 0 if their tag does not say."""
    named = re.search(r"_s(\d+)([mb])(_|$)", tag)
    if named is None:
        return SAMPLES_SEEN.get(tag, 0)
    return int(named[1]) * {"m": 10**6, "b": 10**9}[named[2]]


def _local(place: str) -> dict[str, Any]:
    """The model of a folder in timm's or open_clip's form: weights, head and transform."""
    folder = Path(place)
    if not any((folder / name).is_file() for name in descriptions.FOLDERS):
        raise RecipeError(
            f"{LOCAL}{place}: there is no {folder / descriptions.TIMM_CONFIG}. To turn a cell into "
            "such a folder, run `rib export CELL --out FOLDER`"
        )
    file = descriptions.checkpoint_in(folder)
    described = descriptions.describe_checkpoint(file)
    if described is None:
        raise RecipeError(f"{LOCAL}{place}: no file describes the model of {file}")
    clip = open_clip_name(described.model["arch"])
    has_head = not clip or descriptions.head_beside(file) is not None
    weights = {"source": "file" if has_head else "open_clip", "path": str(file), "clip": clip}
    model = {"name": folder.resolve().name, **descriptions.recipe_keys(described.model)}
    names = list(described.classes or ())
    are_wnids = names == sorted(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)
    is_imagenets = described.outputs == IMAGENET_CLASSES and are_wnids
    is_fitted = has_head and not is_imagenets
    return model | {"weights": weights, "head": {"fit": True} if is_fitted else {}}
