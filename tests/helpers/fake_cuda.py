"""The engine's programs on CUDA tensors without memory, in a process of their own.

A test module marks such tests with `traced` (`children`) and starts them by `run_traced`. Kernels
and operators are counted (`launches.counted`) and not run; what the host would have to wait for is
counted too, or raises an error, since such a tensor has no numbers to read.
"""

import contextlib
import copy
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import models
from engine.cells.build import Builder
from engine.evaluation import bank
from engine.run import Run
from engine.store.cells import Cell
from helpers.children import TRACING, run_marked
from helpers.shared import kept
from loaders.batches import Batch
from loaders.files.durable import short_digest

if TRACING:
    ctypes.CDLL(TRACING).register_guard()

CUDA = torch.device("cuda:0")
# As on a GPU, but not compiled: a graph's launches are the compiler's.
FORM = ("train.precision=bf16", "evaluate.precision=bf16")
FORM += ("train.compile=never", "evaluate.compile=never")


def run_traced(test_file: str, folder: Path, config: pytest.Config) -> None:
    """Runs a module's tests that are marked `traced`, in a process of their own.

    config: of this run of tests, whose cache keeps the library that they need.
    """
    library = str(_stand_in(kept(config, "fake_cuda", folder)))
    run_marked("traced", Path(test_file), folder, RIB_TRACING=library, LD_PRELOAD=library)


def _stand_in(folder: Path) -> Path:
    """The compiled library by which torch can trace CUDA tensors without a GPU."""
    torch_folder, source = Path(torch.__file__).parent, Path(__file__).with_suffix(".cpp")
    name = short_digest([source.read_text(), str(torch_folder), torch.__version__])
    library = folder / f"{name}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}"]
        command += [str(source), f"-L{torch_folder / 'lib'}", "-lc10"]
        command += [f"-Wl,-rpath,{torch_folder / 'lib'}", "-o", str(made)]
        subprocess.run(command, check=True, timeout=900)
        made.rename(library)
    return library


@torch.library.impl("aten::_fused_sgd_", "Meta")  # torch has one for AdamW's, none for SGD's
def _fused_sgd(*_: Any, **__: Any) -> None:
    pass


class _Images:
    """A set's batches: images on the GPU, without content."""

    def __init__(self, size: int) -> None:
        self.size = size

    def batches(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]:
        for index in batches:
            n, size = len(index), self.size
            shape = (n, 3, size, size)
            gather = lambda shape=shape: torch.empty(shape, dtype=torch.uint8, device=CUDA)  # noqa: E731
            yield Batch(index, CUDA, gather)


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors without content, on the fake GPU too; `pin_memory` can be told from a plain copy.

    Attention is computed by its formula: a fused form asks for a real GPU's properties.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),
    ):
        patch.setattr(torch.Tensor, "pin_memory", _pinned)
        yield


@contextlib.contextmanager
def on_fake_gpu(builder: Builder) -> Iterator[Run]:
    """The run of a CPU's builder, moved to a GPU whose tensors have no content.

    Its artefacts, which must be finished, are those of the CPU; networks and batches are fake.
    """
    from deepspeed import DeepSpeedEngine

    on_cpu, on_gpu = builder, copy.copy(builder)
    on_gpu.device = CUDA
    network, create, state = Run.network, models.create, Cell.state

    def fake_network(_: Run, cell: Cell) -> nn.Module:
        return moved(copy.deepcopy(_with_content(network, on_cpu, cell)))

    def fake_model(*arguments: Any) -> nn.Module:
        net = _with_content(create, *arguments)
        return moved(copy.deepcopy(net)) if detect_fake_mode() else net

    images = _Images(builder.recipe.model.image_size)
    to = nn.Module.to
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepSpeedEngine, "_broadcast_model", lambda self: None)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(
            nn.Module, "to", lambda m, *a, **k: moved(m) if detect_fake_mode() else to(m, *a, **k)
        )
        patch.setattr(Run, "network", fake_network)
        patch.setattr(models, "create", fake_model)
        patch.setattr(models, "create_for_states", lambda *given: fake_model(*given[:2]))
        patch.setattr(Cell, "state", lambda cell: _with_content(state, cell))
        patch.setattr(Run, "machine", on_cpu.machine)  # so that artefacts are those of the CPU
        patch.setattr(type(on_cpu.sets), "source", lambda *_: images)
        patch.setattr(bank, "free_memory", lambda _: 80e9)
        with fake_gpu():
            yield on_gpu


def _with_content(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function that reads files gives outside of the fake GPU."""
    with unset_fake_temporarily():
        return function(*arguments)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.clone()
    copied.pinned = True  # type: ignore[attr-defined]  # for `launches.counted`
    return copied


def moved(net: nn.Module) -> nn.Module:
    """The network, whose tensors are on the fake GPU now."""
    for module in net.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            held = {k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}
            tensors.update({name: _moved(tensor) for name, tensor in held.items()})
    return net


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device == CUDA:
        return tensor
    on_gpu = torch.empty_like(tensor, device=CUDA, requires_grad=tensor.requires_grad)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(on_gpu, tensor.requires_grad) if is_parameter else on_gpu
