"""Launches go to their tensors' device, and sizes that change from call to call compile nothing."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from helpers.launches import Counts, counted

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from helpers import aot, specializations
from kernels import ewc, interpolation, launch
from kernels.transport import sweep


def test_a_kernel_starts_on_the_device_of_its_first_tensor(monkeypatch):
    current = ["cuda:0"]

    @contextlib.contextmanager
    def device(target):
        current.append(str(target))
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: calls.append((current[-1], grid, options))

    calls, tensor = [], SimpleNamespace(device=torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device", device)
    launch.start(Kernel(), (3,), tensor, 1, WARPS=2)
    launch.start(Kernel(), (4,), torch.zeros(1))
    options = launch.FUSED | {"WARPS": 2}
    assert calls == [("cuda:1", (3,), options), ("cuda:0", (4,), launch.FUSED)]


def test_kernels_ask_for_fused_multiply_adds(monkeypatch):
    """Triton 3.10 fuses only where it is asked to."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    spec = next(
        spec for spec in specializations.every() if spec["name"].startswith("sinkhorn_sweep")
    )
    assert aot.compile_for(spec, 90).fused > 0
    options = {}
    monkeypatch.setattr(JITFunction, "run", lambda *_, **given: options.update(given))
    launch.start(spec["fn"], (1,), torch.zeros(1))
    assert options["enable_fp_fusion"]


def variants(counts: Counts) -> set[str]:
    """What Triton would compile for these launches on an H100."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    keys = set()
    for kernel, arguments, options in counts.seen:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialization, rest = bind(*arguments, **options)
        keys.add(f"{kernel.fn.__name__} {specialization} {rest}")
    return keys


def apart(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows a multiple of 64 numbers apart, as `padded` has them on a GPU."""
    return torch.zeros(rows, 640, dtype=dtype)[:, :columns]


def of_transport(n: int, m: int) -> None:
    f, g = torch.zeros(n), torch.zeros(m)
    sweep._sweep(apart(n, m, torch.int16), f, g, f.clone())


def of_interpolation(outputs: int, _: int) -> None:
    parents, weights = torch.zeros(2, 4096), torch.zeros(outputs, 2)
    interpolation._interpolate(parents, weights, torch.zeros(outputs, 4096))


def of_steps(count: int, size: int) -> None:
    """Parameters, as many and of the size, for other steps and rates."""
    columns = [[torch.zeros(size)] * count for _ in range(6)]
    ewc._launch(columns, [[0.1 * count] * 8] * (1 if count == 16 else count))


@pytest.mark.parametrize(
    ("work", "sizes"),
    [
        (of_transport, [(1, 16), (37, 517), (64, 512), (16, 1)]),
        (of_interpolation, [(16, 0), (9, 0), (11, 0)]),
        (of_steps, [(1, 5), (16, 64), (3, 16384), (2, 3000)]),
    ],
    ids=["transport", "interpolation", "steps"],
)
def test_other_sizes_compile_nothing_anew(work, sizes, monkeypatch):
    monkeypatch.setattr(launch, "row_pitch", lambda columns, _: -(-columns // 64) * 64)
    compiled = []
    for size in sizes:
        with counted(run=False) as counts:
            work(*size)
        compiled.append(variants(counts))
    assert compiled[0] and all(each == compiled[0] for each in compiled), [
        each ^ compiled[0] for each in compiled
    ]
