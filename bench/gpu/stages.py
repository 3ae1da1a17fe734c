"""The stages of `make gpu`: their programs, and the packages that these cannot do without."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTES = 8.0
ENGINE = ("timm", "deepspeed", "omegaconf", "msgspec", "pyarrow", "safetensors", "PIL", "tqdm")


@dataclass(frozen=True)
class Stage:
    """commands: arguments of Python, run one after the other; the stage's time is for all of them.

    needs: packages without which there is nothing to run. A command leaves out what only other
    packages could do, and says so.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Needed packages that this Python lacks."""
        return [name for name in ("torch", *self.needs) if importlib.util.find_spec(name) is None]


def stages(out: Path, device: str, small: bool) -> list[Stage]:
    """All stages, in their order. small: sizes with which a CPU takes seconds."""
    where = ("--device", device, "--out", str(out), *(["--small"] if small else []))
    timed = ("--device", device, "--out", str(out), "--drawn")
    timed += ("--quick", "--seconds", "0") if small else ("--seconds", "5")
    report = f"--junitxml={out / 'tests.xml'}"
    # A test that hangs shows where it does; the stage's end ends it.
    hangs = ("-o", "faulthandler_timeout=120")
    triton = ("triton",) if device == "cuda" else ()

    def bench(*cases: str) -> tuple[str, ...]:
        return ("-m", "bench", *cases, *timed)

    return [
        Stage("probe", (("-m", "bench.gpu.probe", *where),), ("numpy",)),
        Stage("tests", (("-m", "pytest", "tests/gpu", "-v", *hangs, report),), ("pytest", *triton)),
        Stage("kernels", (bench("distill", "fisher", "interpolate"),), ("numpy", *triton)),
        Stage("transport", (bench("transport", "bures"),), ("numpy", *triton)),
        Stage("optimizer", (bench("optimizer"),), ("numpy", "timm", *triton)),
        Stage("training", (bench("training", "train"),), ("numpy", "timm", *triton)),
        Stage("engine", (("-m", "bench.gpu.campaign", *where), bench("evaluation")), ENGINE),
        Stage("profile", (("-m", "bench.gpu.profile", *where),), ("timm", *triton)),
    ]


def chosen(names: Sequence[str], every: Sequence[Stage]) -> list[Stage]:
    """The stages of these names, or all. Raises ValueError for a name that is none of them."""
    known = {stage.name: stage for stage in every}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no stage {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(every)


def python(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-u", *command]
