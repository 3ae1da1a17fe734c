"""Installed packages that hide ours, or are not what their name says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from engine.machine.doctor.diagnosis import MISSING, OK, WRONG, Diagnosis
from engine.machine.doctor.programs import NoAnswer, answer
from engine.machine.entry import ROOT

OURS = "rib-engine"
IMPORT_S = 60
FFCV = "apt-get install pkg-config libopencv-dev libturbojpeg0-dev && pip install ffcv==1.0.2"
APEX = "build it from https://github.com/NVIDIA/apex"


def ours(name: str) -> Diagnosis:
    """Whether `import NAME` brings our package, and whether another one is installed as well."""
    place = _folder(_spec(name))
    others = sorted(set(_owners(name)) - {OURS})
    cure = f"pip uninstall {' '.join(others)}" if others else "use a fresh virtual environment"
    if place != ROOT / name:
        return Diagnosis(WRONG, f"{place or 'nothing'} hides ours, {ROOT / name}", cure)
    if others:
        detail = f"{', '.join(others)} is installed too, and hidden by ours"
        return Diagnosis(WRONG, detail, cure, needed=False)
    return Diagnosis(OK, str(place))


def apex() -> Diagnosis:
    """NVIDIA's apex is known by its parts; the package of that name on PyPI is another project."""
    folder = _folder(_spec("apex"))
    if folder is None:
        return Diagnosis(MISSING, "not installed", APEX, needed=False)
    missing = [] if (folder / "optimizers").is_dir() else ["apex.optimizers"]
    missing += [] if _spec("amp_C") else ["amp_C"]
    if missing:
        detail = f"{folder} lacks {' and '.join(missing)}: not NVIDIA's, or built without CUDA"
        return Diagnosis(WRONG, detail, f"pip uninstall apex; {APEX}", needed=False)
    return Diagnosis(OK, str(folder))


def ffcv() -> Diagnosis:
    """Imported in a process of its own, which it may crash."""
    if _spec("ffcv") is None:
        return Diagnosis(MISSING, "not installed", FFCV, needed=False)
    try:
        answer(sys.executable, "-P", "-c", "import ffcv", seconds=IMPORT_S)
    except NoAnswer as error:
        return Diagnosis(WRONG, str(error), FFCV, needed=False)
    return Diagnosis(OK, importlib.metadata.version("ffcv"))


def _owners(name: str) -> Iterator[str]:
    """The installed projects that bring a package or module of this name, as pip's records say."""
    for project in importlib.metadata.distributions():
        if re.search(rf"^{name}(/|\.py,)", project.read_text("RECORD") or "", re.MULTILINE):
            yield project.metadata["Name"]


def _spec(name: str) -> ModuleSpec | None:
    """What `import NAME` would bring; in this process another may be imported already."""
    finders = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next(filter(None, finders), None)


def _folder(spec: ModuleSpec | None) -> Path | None:
    places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
    return Path(places[0] or "").resolve() if places else None
