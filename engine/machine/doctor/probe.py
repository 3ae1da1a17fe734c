"""A program: imports torch or DeepSpeed, and writes what it says of this machine, as JSON.

The doctor starts it as a process of its own, because an import can crash or never end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from typing import Any


def torch_facts() -> dict[str, Any]:
    import torch
    from torch.cuda import nccl

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    numbers = range(torch.cuda.device_count() if available else 0)
    gpus = [torch.cuda.get_device_properties(number) for number in numbers]
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "available": available,
        "warnings": [str(each.message).splitlines()[0] for each in caught],
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
        "bf16": available and torch.cuda.is_bf16_supported(including_emulation=False),
        "nccl": ".".join(map(str, nccl.version())) if has_nccl and available else None,
    }


def deepspeed_facts() -> dict[str, Any]:
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed

    return {"version": deepspeed.__version__}


def main(library: str) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            facts = {"torch": torch_facts, "deepspeed": deepspeed_facts}[library]()
    except Exception as error:  # a broken package can raise anything
        reason = (str(error).splitlines() or [""])[0]
        facts = {"error": f"{type(error).__name__}: {reason}"}
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
