"""Architectures that timm or open_clip has registered, looked up in the installed packages.

`recipes/architectures.json` stores what planning asks of the architectures in `recipes/models`,
because importing timm takes seconds; `python -m bench.architectures` writes it.

Every name that a user's file gives is looked up here before anything is built: timm and open_clip
would follow others, such as `hf-hub:someone/net`, to a hub or another folder.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError

OPEN_CLIP = "open_clip:"  # prefix of open_clip's architectures
STORED = Path(__file__).resolve().parents[2] / "recipes" / "architectures.json"
CONFIG = (  # keys of timm's config that the engine reads, beside those of the data config
    *("test_input_size", "test_crop_pct", "fixed_input_size", "classifier"),
    *("hf_hub_id", "license"),
)


def open_clip_name(arch: str) -> str:
    """open_clip's name of the architecture `open_clip:NAME`; empty for timm's."""
    return arch.removeprefix(OPEN_CLIP) if arch.startswith(OPEN_CLIP) else ""


@functools.cache
def stored_architectures() -> Mapping[str, Any]:
    """For each architecture: `config`, and `networks`, the counts of `engine.cost.work.Network`."""
    return json.loads(STORED.read_bytes())


def timm_config(arch: str) -> Mapping[str, Any]:
    """timm's data config of an architecture, and the keys `CONFIG` of its pretrained config.

    Raises RecipeError for an unknown architecture.
    """
    stored = stored_architectures()
    return stored[arch]["config"] if arch in stored else installed_config(arch)


@functools.cache
def installed_config(arch: str) -> Mapping[str, Any]:
    """`timm_config` of the installed timm."""
    import timm  # imported here: it loads torch, which recipes in files do not need
    from timm.data.config import resolve_data_config

    known = timm.list_models() + timm.list_pretrained()
    if arch not in known:
        raise RecipeError(f"timm has no architecture {arch!r}{nearest(arch, known)}")
    config = timm.get_pretrained_cfg(arch)
    values = config.to_dict() if config else {"architecture": arch}
    return {key: values.get(key) for key in CONFIG} | resolve_data_config(pretrained_cfg=values)


def open_clip_package() -> Any:
    """Returns the package open_clip. Raises ValueError, naming the extra, if it is missing."""
    try:
        import open_clip  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            "this model requires open_clip: pip install -e '.[clip]' (the package open_clip_torch)"
        ) from error
    return open_clip


def open_clip_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model. Raises RecipeError for an unknown name."""
    open_clip = open_clip_package()
    known = open_clip.list_models()
    if name not in known:
        raise RecipeError(f"open_clip has no model {name!r}{nearest(name, known)}")
    return open_clip.get_model_config(name)


def side_of(arch: str, input_size: Sequence[int]) -> int:
    """Side length, in pixels, of an architecture's input. Raises RecipeError unless square."""
    _, height, width = input_size
    if height != width:
        raise RecipeError(
            f"{arch} takes images of {height} x {width} pixels, but packs contain square ones: "
            "choose another model"
        )
    return width
