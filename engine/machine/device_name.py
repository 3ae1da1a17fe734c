"""The name of a job's device."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

CPUS = Path("/proc/cpuinfo")


def device_name(device: torch.device) -> str:
    """Returns the vendor's name of the GPU or CPU, or else the machine's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = CPUS.read_text("utf-8") if CPUS.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1].strip() if model else platform.machine()
