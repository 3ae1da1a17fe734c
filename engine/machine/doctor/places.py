"""Folders that the engine writes to: whether it may, and how much room there is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.machine.doctor.diagnosis import OK, WRONG, Diagnosis


def runs(folder: Path, least_gb: float) -> Diagnosis:
    """Where packs and results go."""
    return _place(folder, "runs=ANOTHER_FOLDER", least_gb)


def cache() -> Diagnosis:
    """Where the engine's downloads go."""
    from engine.machine.files import cache_folder  # late: another package may hide `loaders`

    return _place(cache_folder(), "export RIB_CACHE=ANOTHER_FOLDER")


def hub() -> Diagnosis:
    """Where timm's and open_clip's weights go."""
    from huggingface_hub import constants

    offline = "; offline, so only what is there" if constants.HF_HUB_OFFLINE else ""
    return _place(
        Path(constants.HF_HUB_CACHE), "export HF_HUB_CACHE=ANOTHER_FOLDER", remark=offline
    )


def _place(folder: Path, cure: str, least_gb: float = 1, remark: str = "") -> Diagnosis:
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Diagnosis(WRONG, f"{there} cannot be written to", cure)
    free = shutil.disk_usage(there).free / 1e9
    if free < least_gb:
        detail = f"{folder}: {free:.1f} GB free, of {least_gb:g} needed"
        return Diagnosis(WRONG, detail, f"make room, or {cure}")
    return Diagnosis(OK, f"{folder}: {free:.0f} GB free{remark}")
