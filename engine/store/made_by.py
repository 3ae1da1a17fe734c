"""What makes an artefact besides what its name covers: shared code, torch, timm and the device.

An artefact's marker records it. Artefacts of other code are reused unless the recipe's `generation`
is raised, so commands compare it with what is installed, and say what differs. Imports no torch.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from engine.recipe.source_code import digest_of_folder

# The code that changes numbers, below the root. A method's own module is part of its cells' names.
CODE = (
    "engine/cells",
    "engine/data",
    "engine/evaluation",
    "engine/extras/cka/alignment.py",
    "engine/machine/compat.py",
    "engine/machine/layers.py",
    "engine/machine/precision.py",
    "engine/methods/base.py",
    "engine/model_files",
    "engine/models",
    "engine/otdd",
    "engine/recipe/image_transform.py",
    "engine/run.py",
    "engine/training",
    "kernels",
    "loaders",
)
PACKAGES = ("torch", "timm")
DEVICE = "device"
SHORT = 12  # digits of a digest


@functools.cache
def installed() -> Mapping[str, str]:
    """Digests of the code by place, and versions by package."""
    code = {name: digest_of_folder(name)[:SHORT] for name in CODE}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return MappingProxyType(code | versions)


def here() -> dict[str, str]:
    """What makes artefacts in this process: `installed`, and the kind of device in use."""
    return {**installed(), DEVICE: kind_of_device()}


def kind_of_device(is_gpu: bool | None = None) -> str:
    """The name of the GPU, or the vector width of the CPU, on which rounding depends.

    is_gpu: which of them; None: the GPU if this process uses it.
    """
    import torch  # late: commands that list a store need none

    if torch.cuda.is_initialized() if is_gpu is None else is_gpu:
        return torch.cuda.get_device_name()
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, in words; of the values that both have. Empty if nothing does."""
    lines = []
    for name in then.keys() & now.keys():
        if then[name] != now[name]:
            if name in CODE:
                lines.append(name)
            else:
                label = f"{name} " if name != DEVICE else ""
                lines.append(f"{label}{then[name]} (now {now[name]})")
    return sorted(lines)


def text(makers: Iterable[Mapping[str, str]]) -> str:
    """What several makers differ in, such as `engine/training; torch 2.14.0, 2.15.0`; empty if
    nothing."""
    makers = list(makers)
    parts = []
    for name in dict.fromkeys(key for maker in makers for key in sorted(maker)):
        values = sorted({maker.get(name, "unknown") for maker in makers})
        if len(values) > 1:
            shown = name if name in CODE else f"{name} {', '.join(values)}"
            parts.append(shown)
    return "; ".join(parts)
