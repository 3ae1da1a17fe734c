"""Libraries that log too much are set to log errors only."""

from __future__ import annotations

import logging
import os
import warnings


def libraries() -> None:
    """Before deepspeed is imported: no banners, no op reports, no per-step lines."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("DeepSpeed", "deepspeed", "numba", "PIL", "matplotlib", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"deepspeed|torch\.distributed|timm")
