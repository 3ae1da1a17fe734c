"""What a terminal shows of a command at work. Imports no torch."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def quiet_libraries() -> None:
    """Limits the logging of libraries to errors. Call before importing deepspeed."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("DeepSpeed", "deepspeed", "numba", "PIL", "matplotlib", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"deepspeed|torch\.distributed|timm")


def announce(text: str) -> None:
    """Prints to standard error what a command is doing.

    Prints nothing if torch is already imported, since there is no wait, and on ranks above 0.
    """
    if "torch" not in sys.modules and _is_first_rank():
        print(f"{text} ...", file=sys.stderr, flush=True)


def progress_bar(*words: Any, **options: Any) -> tqdm:
    """Returns a bar that disappears when done. Hidden by RIB_PROGRESS=off, and on ranks above 0."""
    from tqdm import tqdm

    hidden = not _is_first_rank() or os.environ.get("RIB_PROGRESS") == "off"
    return tqdm(*words, leave=False, disable=hidden, **options)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
