"""Counts what the host asks of a GPU, on a machine without one.

A launch is a kernel of this package, or an operator of PyTorch that computes or copies; a wait is
an operator or a method by which the host reads a tensor, or a copy between host and GPU that is
not made from pinned memory without waiting. Views and fresh memory are neither. On a GPU an
operator may be more than one launch, so what is counted is a lower bound.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch._C import DisableTorchFunction
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from kernels import launch

_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "lift_fresh"}
_FREE |= {"squeeze_", "unsqueeze_", "detach_", "_unsafe_view"}
_WAITS = {"nonzero", "equal", "unique_consecutive", "repeat_interleave", "segment_reduce"}
_COPIES = {"_to_copy", "copy_"}
# Not taken apart: attention is one kernel on a GPU, and dropout's parts copy, though it does not.
_WHOLE = {"scaled_dot_product_attention", "dropout"}
_READS = {"tolist", "item", "__float__", "__bool__", "__int__", "__index__", "cpu", "numpy"}


def _waits(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether the host waits for a copy. `pinned` is set by who stands in for `pin_memory`."""
    if name == "copy_":
        target, source = args[:2]
        to, without_waiting = target.device, options.get("non_blocking", (*args, False)[2])
    else:
        target = source = args[0]
        to, without_waiting = options.get("device", source.device), options.get("non_blocking")
    if "cuda" not in (source.device.type, to.type) or source.device.type == to.type:
        return False
    on_host = source if source.device.type == "cpu" else target
    return not (without_waiting and getattr(on_host, "pinned", False))


def _is_on_host(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a traced operator reads tensors of the CPU alone, and leaves its result there."""
    traced = [t for t in tree_leaves(args) if isinstance(t, FakeTensor)]
    devices = {t.device.type for t in traced} | {torch.device(options.get("device") or "cpu").type}
    return bool(traced) and devices == {"cpu"}


class _Reads(TorchFunctionMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # A traced program's tensors say where they are; a CPU's that is run stand for a GPU's.
        on_host = args and isinstance(args[0], FakeTensor) and args[0].device.type == "cpu"
        if (name := getattr(func, "__name__", "")) in _READS and not on_host:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Counts(TorchDispatchMode):
    """Launches by kernel or operator, and waits; `seen` holds (kernel, arguments, options)."""

    run: bool = True
    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def total(self) -> int:
        return self.launches.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # An operator of this package, and what an operator in it is made of, count as their parts.
        definition = OPDEFS.get(func._name.removesuffix(".default"))
        name = func.overloadpacket.__name__
        if definition or (func.namespace == "aten" and name not in _WHOLE):
            with self:
                parts = definition._init_fn if definition else func.decompose
                result = parts(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        free = name in _FREE or func.is_view or (name == "dropout" and not args[2])
        if func.namespace == "aten" and not free and not _is_on_host(args, kwargs or {}):
            (self.waits if name in _WAITS else self.launches)[name] += 1
            if name in _COPIES and _waits(name, args, kwargs or {}):
                self.waits[name] += 1
        return func(*args, **(kwargs or {}))

    def launch(self, kernel: Any, grid: Any, arguments: Any, options: Any) -> None:
        self.launches[kernel.fn.__name__] += 1
        self.seen.append((kernel, arguments, options))
        if self.run:
            with _disable_current_modes(), DisableTorchFunction():
                kernel[grid](*arguments, **options)


@contextlib.contextmanager
def counted(*, run: bool = True) -> Iterator[Counts]:
    """run: whether kernels are started too, which takes the interpreter or a GPU."""
    counts = Counts(run)

    def start(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
        counts.launch(kernel, grid, arguments, options)

    with pytest.MonkeyPatch.context() as patch, counts, _Reads(counts.waits):
        patch.setattr(launch, "start", start)
        yield counts
