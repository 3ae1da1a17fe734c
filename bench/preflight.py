"""What a machine must have before GPU time is spent, and what it does: `make gpu`'s first stage.

In a minute: those checks of `rib doctor` that stages depend on, room, and what a GPU says of
itself; then a kernel, a compiled function, an epoch by DeepSpeed, the rates of a copy and of a
product, and with two GPUs of an exchange. A line and a row for each as soon as it is known; exit
status 1 where one that is required is not ok. A check that takes longer than `LIMIT_S` is the last:
those after it would wait for the same driver.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch

from engine.commands import doctor
from engine.commands.doctor import MISSING, OK, WRONG, Check, Diagnosis
from engine.machine.programs import NoAnswer, answer

SHM_GB, DISK_GB, GPU_GB, MEMORY_GB = 1, 5, 20, 24  # that are free
SHM_FOLDER = Path("/dev/shm")
PACKAGES = (
    *("torch", "triton", "numpy", "timm", "deepspeed", "msgspec", "pyarrow", "safetensors", "PIL"),
    *("tqdm", "psutil", "filelock>=4.3", "pytest"),
)
FACTS = "driver_version,clocks.max.sm,clocks.sm,power.limit,mig.mode.current,ecc.mode.current"
LIMIT_S = 40.0  # of a check
PEER_ACCESS = "export NCCL_P2P_DISABLE=1, or disable ACS in the BIOS (IOMMU off)"
ERROR = 1e-6  # of a kernel in float32, relative to the largest number


def checks(device: torch.device) -> list[Check]:
    """All checks, those that the others depend on first."""
    facts, on_gpu = doctor.torch_facts(), device.type == "cuda"
    shm = partial(doctor.place, SHM_FOLDER, SHM_GB, "start the container with --shm-size=8g")
    free = [Check("free", "all stages", free_gpu)] if on_gpu else []
    of_gpu = [
        Check("GPU", "all stages", partial(doctor.gpu, facts)),
        *free,
        Check("settings", "a GPU's rates", settings),
    ]
    several = on_gpu and torch.cuda.device_count() > 1
    return [
        Check("compiler", "Triton, torch.compile", partial(doctor.compiler, facts)),
        Check("shm", "loaders' workers", shm),
        Check("TMPDIR", "drawn pictures, compiled code", temporary),
        Check("packages", "all stages", packages),
        *(of_gpu if on_gpu else []),
        Check("memory", "two processes and their loaders", memory),
        Check("kernel", "against float64", partial(kernel, device)),
        Check("compile", "torch.compile", partial(compiled, device)),
        Check("DeepSpeed", "an epoch of two steps", partial(step, device)),
        Check("copy", "memory's rate", partial(copy, device)),
        Check("product", "bf16 on a GPU", partial(product, device)),
        *([Check("exchange", "two GPUs", partial(exchange, device))] if several else []),
    ]


def temporary() -> Diagnosis:
    folder = Path(tempfile.gettempdir())
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return Diagnosis(WRONG, f"{folder} is mounted noexec", "export TMPDIR=ANOTHER_FOLDER")
    return doctor.place(folder, DISK_GB, "export TMPDIR=ANOTHER_FOLDER")


def packages() -> Diagnosis:
    missing = [need for need in PACKAGES if not is_installed(need)]
    if not missing:
        return Diagnosis(OK, f"{len(PACKAGES)} installed")
    cure = f"pip install {' '.join(missing).replace('PIL', 'pillow')}"
    return Diagnosis(MISSING, f"{len(missing)} not installed", cure)


def memory() -> Diagnosis:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    enough, detail = free >= MEMORY_GB, f"{free:.0f} GB of host memory free"
    needs = f"{detail}, {MEMORY_GB} GB required"
    return Diagnosis(OK, detail) if enough else Diagnosis(WRONG, needs, "a larger job", False)


def free_gpu() -> Diagnosis:
    """Free memory of the GPU that has the least; stages with ranks use all of them."""
    least, total, number = min(
        (*(count / 1e9 for count in torch.cuda.mem_get_info(number)), number)
        for number in range(torch.cuda.device_count())
    )
    detail = f"{least:.0f} of {total:.0f} GB free on GPU {number}"
    if least > GPU_GB:
        return Diagnosis(OK, detail)
    return Diagnosis(WRONG, detail, "end what else runs on it (nvidia-smi)")


def settings() -> Diagnosis:
    """Driver, clocks, power, MIG and ECC of each GPU, and how the GPUs are connected."""
    try:
        found = answer("nvidia-smi", f"--query-gpu={FACTS}", "--format=csv,noheader")
        print(answer("nvidia-smi", "topo", "-m"))
    except NoAnswer as error:
        return Diagnosis(MISSING, str(error), needed=False)
    return Diagnosis(OK, f"{FACTS}: {'; '.join(found.splitlines())}")


def kernel(device: torch.device) -> Diagnosis:
    from kernels.interpolation import interpolate  # a Triton kernel on a GPU

    parents, weights = torch.randn(2, 100_003), torch.tensor([[0.25, 0.75]])
    actual = interpolate(parents.to(device), weights.to(device)).cpu().double()
    expected = weights.double() @ parents.double()
    return _agreement(actual, expected)


def compiled(device: torch.device) -> Diagnosis:
    x = torch.randn(1000, device=device)

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x) * 2

    # Inductor's cache on disk would serve code that was compiled for another instruction set.
    torch.compiler.config.cache_key_tag = torch.backends.cpu.get_cpu_capability()
    return _agreement(torch.compile(gelu)(x).double(), gelu(x.double()))


def _agreement(actual: torch.Tensor, expected: torch.Tensor) -> Diagnosis:
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    return Diagnosis(OK if error <= ERROR else WRONG, f"apart by {error:.1g}, {ERROR:g} allowed")


def step(device: torch.device) -> Diagnosis:
    from engine.cost.throughput import Bench
    from engine.machine import ranks
    from engine.machine.terminal import quiet_libraries
    from engine.recipe.overrides import parsed

    quiet_libraries()
    # Uncompiled: a graph takes longer than a check may.
    toy = parsed(["model.arch=test_vit", "model.image_size=32", "train.compile=never"])
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), "file", toy, ranks.start(device.type), steps=2)
        with bench.training("fine_tune", 4) as training:
            training.run()
    return Diagnosis(OK, f"{importlib.metadata.version('deepspeed')}, with finite weights")


def copy(device: torch.device) -> Diagnosis:
    a, b = torch.ones(2, 2**28 if device.type == "cuda" else 2**24, device=device)
    return Diagnosis(OK, f"{2 * a.nbytes / 1e6 / _ms(lambda: b.copy_(a), device):.3g} GB/s")


def product(device: torch.device) -> Diagnosis:
    dtype, side = (torch.bfloat16, 8192) if device.type == "cuda" else (torch.float32, 512)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    rate = 2 * side**3 / 1e9 / _ms(lambda: a @ b, device)
    return Diagnosis(OK, f"{rate:.3g} TFLOP/s, {str(dtype).removeprefix('torch.')}, {side}^3")


def exchange(device: torch.device) -> Diagnosis:
    from bench import ranks

    seconds = 0.9 * LIMIT_S
    try:
        rate = ranks.exchanged(2, device.type, ranks.BYTES, seconds)
    except subprocess.TimeoutExpired:
        detail = f"two GPUs did not exchange within {seconds:.0f} s: peer access may be broken"
        return Diagnosis(WRONG, detail, PEER_ACCESS)
    return Diagnosis(OK, f"{rate:.3g} GB/s of an all-reduce")


def _ms(run: Callable[[], object], device: torch.device) -> float:
    from bench.contest import interleave

    (times,) = interleave([run], device, seconds=0, least=9)
    return min(times)


def is_installed(need: str) -> bool:
    """Whether this Python has a package, `name` or `name>=1.2`."""
    name, _, least = need.partition(">=")
    if importlib.util.find_spec(name) is None:
        return False
    parts = importlib.metadata.version(name).split(".") if least else []
    return [int(part) for part in parts[:2]] >= [int(part) for part in least.split(".") if part]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.preflight", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, help="folder for the rows")
    options = parser.parse_args(arguments)
    from bench.report import Results

    device = torch.device(options.device)
    rows, harmful, results = [], False, Results(options.out, "preflight", device)
    for check, diagnosis in doctor.shown(_limited(checks(device))):
        rows.append({"check": check.name, "state": diagnosis.state, "detail": diagnosis.detail})
        harmful |= diagnosis.is_harmful
        results.write(rows=rows)
    return int(harmful)


def _limited(checks: Sequence[Check]) -> Iterator[Check]:
    """The checks in threads of their own, until one of them takes too long."""
    late = False

    def look(check: Check) -> Diagnosis:
        nonlocal late
        answer: Future[Diagnosis] = Future()

        def run() -> None:
            try:
                answer.set_result(check.look())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            return answer.result(LIMIT_S)
        except TimeoutError:
            late = not answer.done()
            if not late:  # the check's own
                raise
            detail = f"no answer within {LIMIT_S:g} s; the checks after it did not run"
            return Diagnosis(WRONG, detail, "nvidia-smi and dmesg may say what hangs")

    for check in checks:
        if not late:
            yield check._replace(look=partial(look, check))


if __name__ == "__main__":
    sys.exit(main())
