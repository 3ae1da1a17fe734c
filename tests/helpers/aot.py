"""Compiles each kernel for A100, H100 and B200 without a GPU, and inspects the machine code.

Register spills, access widths and shared memory are properties of the compiled code, so regressions
show without a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.launch import FUSED, triton

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # of A100, H100 and B200


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture, as the assembler and the disassembler report it."""

    name: str
    arch: int
    registers: int
    stack: int
    shared: int
    local_accesses: int
    fused: int  # multiply-adds
    widest_load: int
    widest_store: int
    wide_loads: int
    wide_stores: int
    aligned: bool
    streams: tuple[int, int]


def compile_for(spec: dict[str, Any], arch: int) -> Compiled:
    """Compiles one specialisation for compute capability `arch`, a key of SHARED_LIMIT.

    Raises RuntimeError if Triton or its cuobjdump is missing.
    """
    if triton is None:
        raise RuntimeError("ahead-of-time compilation needs triton: pip install triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = spec["fn"]
    signature = {name: spec["signature"].get(name, "constexpr") for name in fn.arg_names}
    integers = {name for name, kind in signature.items() if kind == "i32"}
    divisible = {name for name, kind in signature.items() if kind.startswith("*")}
    free = {param.name for param in fn.params if param.do_not_specialize}
    divisible |= set(spec.get("divisible", integers)) - free
    attrs = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(fn.arg_names)
        if name in divisible
    }
    source = ASTSource(fn, signature, constexprs=spec["constexprs"], attrs=attrs)
    options = FUSED | {key: spec[key] for key in ("num_warps", "num_stages") if key in spec}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage, code = _disassemble(built.asm["cubin"])
    loads = _widths(r"\b(?:LDG|LDGSTS)\.(\S+)", code)
    stores = _widths(r"\bSTG\.(\S+)", code)
    return Compiled(
        name=spec["name"],
        arch=arch,
        registers=int(_field(r"REG:(\d+)", usage)),
        stack=int(_field(r"STACK:(\d+)", usage)),
        shared=built.metadata.shared,
        local_accesses=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        fused=len(re.findall(r"\b[DFH]FMA", code)),
        widest_load=max(loads, default=0),
        widest_store=max(stores, default=0),
        wide_loads=loads.count(16),
        wide_stores=stores.count(16),
        aligned=spec.get("aligned", True),
        streams=spec.get("streams", (1, 1)),
    )


def _disassemble(cubin: bytes) -> tuple[str, str]:
    assert triton is not None
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        raise RuntimeError(f"{tool} is missing: install a Triton wheel that includes cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run(
                [str(tool), flag, str(path)], capture_output=True, encoding="utf-8", check=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )
    return usage, code


def _field(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, f"cuobjdump printed no {pattern}"
    return match[1]


def _widths(pattern: str, code: str) -> list[int]:
    """Bytes of each global access; an instruction without a width moves 4."""
    bytes_moved = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    widths = []
    for modifiers in re.findall(pattern, code):
        named = [bytes_moved[m] for m in modifiers.split(".") if m in bytes_moved]
        widths.append(named[0] if named else 4)
    return widths
