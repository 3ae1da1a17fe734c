"""The stages of `make gpu`: their programs, and the packages that these cannot do without."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTES = 8.0
ENGINE = (
    *("timm", "deepspeed", "msgspec", "pyarrow", "safetensors", "PIL", "tqdm", "psutil"),
    "filelock>=4.3",
)
WORKERS = 4  # tests compile a kernel each, one after the other in a process


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
        return lacking(("torch", *self.needs))


def lacking(needs: Sequence[str]) -> list[str]:
    """Those of the needed packages, `name` or `name>=1.2`, that this Python does not have."""
    return [need for need in needs if not _is_there(need)]


def _is_there(need: str) -> bool:
    name, _, least = need.partition(">=")
    if importlib.util.find_spec(name) is None:
        return False
    if not least:
        return True
    parts = importlib.metadata.version(name).split(".")[:2]
    return [int(part) for part in parts] >= [int(part) for part in least.split(".")]


def stages(out: Path, device: str, small: bool) -> list[Stage]:
    """All stages, what is worth most first. small: sizes with which a CPU takes seconds."""
    where = ("--device", device, "--out", str(out), *(["--small"] if small else []))
    timed = ("--device", device, "--out", str(out), "--drawn")
    timed += ("--quick", "--seconds", "0") if small else ("--seconds", "5")
    # Each test's line and failure are printed at once (tests/gpu/conftest.py), so the log has them
    # whatever ends the stage. A test that hangs shows where it does.
    pytest = ("-m", "pytest", "tests/gpu", "-v", "-o", "faulthandler_timeout=120")
    pytest += ("--continue-on-collection-errors",)
    if importlib.util.find_spec("xdist"):
        pytest += ("-n", str(WORKERS))
    triton = ("triton",) if device == "cuda" else ()

    def bench(case: str) -> tuple[str, ...]:
        return ("-m", "bench", case, *timed)

    def program(name: str) -> tuple[str, ...]:
        return ("-m", f"bench.gpu.{name}", *where)

    return [
        Stage("training", (program("headline"), bench("train")), ("numpy", "timm", *triton)),
        Stage("tests", (pytest,), ("pytest", *triton)),
        Stage("kernels", (bench("kernels"),), ("numpy", "timm", *triton)),
        Stage("transport", (bench("transport"),), ("numpy", *triton)),
        Stage("probe", (program("probe"),), ("numpy",)),
        Stage("engine", (program("campaign"), bench("evaluation")), ENGINE),
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


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of a stage's program, `python -m bench.gpu.NAME`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.gpu.{name}", description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    return parser
