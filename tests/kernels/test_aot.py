"""Every kernel compiled for A100, H100 and B200: no spills, wide accesses, it fits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import kernels
from helpers import aot, specializations
from kernels.launch import jit, tl

SPECIALISATIONS = specializations.every()
# One of each kernel; with RIB_GATE=all (`make gate`) all that is launched.
COMPILED = list({spec["fn"]: spec for spec in reversed(SPECIALISATIONS)}.values())
if os.environ.get("RIB_GATE") == "all":
    COMPILED = SPECIALISATIONS
ARCHS = [
    pytest.param(arch, marks=() if arch == 90 else pytest.mark.exhaustive)
    for arch in aot.SHARED_LIMIT
]
SPILLS = {("distill[21843] fp32", 100): 24}  # bytes of stack of a thread; docs/performance.md


def test_every_kernel_module_takes_part():
    package = Path(kernels.__file__).parent
    files = [path for path in package.rglob("*.py") if "launch.start(" in path.read_text()]
    names = (path.relative_to(package).with_suffix("").as_posix() for path in files)
    launching = {name.replace("/", ".") for name in names}
    modules = {spec["fn"].fn.__module__.removeprefix("kernels.") for spec in SPECIALISATIONS}
    assert modules == launching and len(modules) >= 4
    names = [spec["name"] for spec in SPECIALISATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("spec", COMPILED, ids=lambda spec: spec["name"])
def test_compiled_code(spec, arch):
    compiled = aot.compile_for(spec, arch)
    known = SPILLS.get((compiled.name, arch), 0)
    assert compiled.stack <= known and (known or compiled.local_accesses == 0), compiled
    assert 0 < compiled.registers <= 255
    assert compiled.shared <= aot.SHARED_LIMIT[arch], compiled
    if compiled.aligned:
        loads, stores = compiled.streams
        assert compiled.widest_load == 16 and (compiled.widest_store == 16 or not stores), compiled
        assert compiled.wide_loads >= loads and compiled.wide_stores >= stores, compiled


@pytest.mark.slow
def test_imports_are_late_and_without_triton_the_cpu_paths_work_and_kernels_are_refused():
    program = """
import sys
sys.modules["triton"] = None
import pkgutil, importlib, kernels
assert not {"numba", "torch"} & set(sys.modules)
from kernels import interpolate
assert "numba" not in sys.modules
import torch
for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
    importlib.import_module(module.name)
from kernels import distill, fisher
s, y = torch.randn(2, 5), torch.tensor([0, 1])
assert distill.distill_loss(s, s, y).shape == (2,)
fisher.FisherAccumulator(torch.nn.Linear(3, 4)).update(torch.randn(2, 3))
try:
    distill._distill(s, s, y, None, 2.0, 1.0, True)
except RuntimeError as error:
    assert "pip install triton" in str(error)
else:
    raise SystemExit("the kernel ran without triton")
"""
    root = Path(kernels.__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr


@jit
def _spilling_kernel(source, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    held = tl.load(source + at)
    for shift in range(100):
        held = held * held + tl.sum(held * shift, 0)
    tl.store(out + at, held)


def test_the_gate_sees_spills_and_narrow_accesses():
    spec = {
        "name": "spilling",
        "fn": _spilling_kernel,
        "signature": {"source": "*fp32", "out": "*fp32"},
        "constexprs": {"SIZE": 16384},
        "num_warps": 1,
    }
    compiled = aot.compile_for(spec, 80)
    assert compiled.stack > 0 and compiled.local_accesses > 0
    odd = next(spec for spec in SPECIALISATIONS if not spec.get("aligned", True))
    narrow = aot.compile_for(odd, 80)
    assert narrow.widest_load < 16 and narrow.wide_loads == 0
