"""Architectures that timm or open_clip has registered, looked up in the installed packages.

Every name that a user's file gives is looked up here before anything is built: timm and open_clip
would follow others, such as `hf-hub:someone/net`, to a hub or another folder.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError

OPEN_CLIP = "open_clip:"  # prefix of open_clip's architectures


def open_clip_name(arch: str) -> str:
    """open_clip's name of the architecture `open_clip:NAME`; empty for timm's."""
    return arch.removeprefix(OPEN_CLIP) if arch.startswith(OPEN_CLIP) else ""


@functools.cache
def timm_config(arch: str) -> dict[str, Any]:
    """timm's config of an architecture. Raises RecipeError for an unknown one."""
    import timm  # imported here: it loads torch, which recipes in files do not need

    known = timm.list_models() + timm.list_pretrained()
    if arch not in known:
        raise RecipeError(f"timm has no architecture {arch!r}{nearest(arch, known)}")
    config = timm.get_pretrained_cfg(arch)
    return config.to_dict() if config else {}


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
