"""Tensors on disk, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from engine.machine.files import room_for
from engine.model_files.descriptions import PROMPT as PROMPT
from engine.model_files.descriptions import WEIGHTS as WEIGHTS

REFERENCE = "reference.safetensors"


def save(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a state dict as safetensors; tensors are made contiguous and moved to the CPU.

    The umask decides who may read the file, as for all other files; safetensors alone would make it
    readable only for its owner. Raises OSError naming the file if the disk is full.
    """
    with room_for(path):
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, path)
        except SafetensorError as error:  # also raised for a full disk
            raise OSError(str(error)) from error
        path.chmod(mode)
