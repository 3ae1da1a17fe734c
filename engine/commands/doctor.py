"""`rib doctor`: what this machine has, what it lacks, what that is for, and what to do about it."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from pathlib import Path

from engine.machine.doctor import libraries, packages, places, programs, slurm
from engine.machine.doctor.diagnosis import OK, Check, Diagnosis, examine

DEMO_GB = 2  # `rib plan emoji` says 1.05
MARGIN = " " * 20  # of a line's rest in a terminal


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("doctor", help="what this machine has and lacks, and the cures")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where results will go; default: runs"
    )
    parser.set_defaults(run=run)


def checks(runs: Path) -> tuple[Check, ...]:
    """What is looked at, from the ground up."""
    imports_s = libraries.IMPORT_S + 10  # more than a check waits itself
    return (
        Check("engine", "the engine itself", lambda: packages.ours("engine")),
        Check("kernels", "fast operators", lambda: packages.ours("kernels")),
        Check("loaders", "packs and images", lambda: packages.ours("loaders")),
        Check("torch", "trains and evaluates", libraries.torch, imports_s),
        Check("DeepSpeed", "steps, and cells shared by GPUs", libraries.deepspeed, imports_s),
        Check("compiler", "DeepSpeed's operator, torch.compile, Triton", programs.compiler),
        Check("Python.h", "DeepSpeed's operator, Triton", programs.headers),
        Check("driver", "GPUs", libraries.driver),
        Check("GPU", "hours in place of days", libraries.gpu, imports_s),
        Check("bf16", "precision on a GPU", libraries.bf16, imports_s),
        Check("NCCL", "several GPUs a cell", libraries.nccl, imports_s),
        Check("Triton", "kernels on a GPU", libraries.triton, imports_s),
        Check(
            "runs",
            "packs and results; rib plan says how much",
            lambda: places.runs(runs, least_gb=DEMO_GB),
        ),
        Check("cache", "downloads of sets", places.cache),
        Check("hub cache", "downloaded weights", places.hub),
        Check("FFCV", "JPEG packs decoded faster", packages.ffcv, 70),
        Check("apex", "optimizer.name=apex_adamw", packages.apex),
        Check("Slurm", "rib campaign --executor slurm", slurm.queue),
        Check("sacct", "how Slurm's jobs ended", slurm.accounting),
        Check("plugin", "Snakemake on Slurm", slurm.plugin),
        Check("Chromium", "the report's tests only", programs.chromium),
    )


def run(arguments: argparse.Namespace) -> int:
    print(f"Python {sys.version.split()[0]}, {sys.prefix}\n", flush=True)
    harmful = []
    for check, diagnosis in examine(checks(arguments.runs)):
        print(_wrapped(line(check, diagnosis)), flush=True)
        harmful += [check.name] if diagnosis.harmful else []
    if harmful:
        print(f"\nneeded here and not ok: {', '.join(harmful)}")
        return 1
    print("\nall that is needed here is ok")
    return 0


def line(check: Check, diagnosis: Diagnosis) -> str:
    """A check as a line: its state, its name, what is the matter, what it is for, and the cure."""
    optional = "" if diagnosis.needed or diagnosis.state == OK else ", optional"
    text = f"{diagnosis.state:<9}{check.name:<11}{diagnosis.detail} ({check.purpose}{optional})"
    return f"{text}; cure: {diagnosis.cure}" if diagnosis.cure else text


def _wrapped(text: str) -> str:
    """A line as wide as the terminal; elsewhere, where programs may read it, as it is."""
    if not sys.stdout.isatty():
        return text
    width = max(60, shutil.get_terminal_size().columns)
    return textwrap.fill(
        text, width, subsequent_indent=MARGIN, break_long_words=False, break_on_hyphens=False
    )
