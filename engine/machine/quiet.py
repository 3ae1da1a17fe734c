"""Limits the logging of libraries to errors."""

from __future__ import annotations

import logging
import os
import warnings


def libraries() -> None:
    """Turns off banners, op reports and per-step lines. Call before importing deepspeed."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("DeepSpeed", "deepspeed", "numba", "PIL", "matplotlib", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"deepspeed|torch\.distributed|timm")
