"""`make gpu`: what a first GPU can tell; bench/README.md says what each stage must show.

    python -m bench.gpu [STAGE ...] [--out FOLDER]
    python -m bench.gpu --device cpu --small      every stage on a CPU, to see that it runs

A stage is a program of its own. One that fails or takes too long is red and does not stop the
others; one whose packages are missing, or for which no time is left, is not run. After each stage
FOLDER/summary.json says what became of it, and FOLDER/results.md has all results as tables, so that
nobody types a number. Exit status: 1 where a stage is red or was not run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.counts import LIMITS, ROUNDS_S
from bench.preflight import is_installed
from bench.report import RESULTS, ROOT, markdown
from engine.commands import doctor

GREEN, RED, NOT_RUN = "green", "red", "not run"
ENGINE = (
    *("timm", "deepspeed", "msgspec", "pyarrow", "safetensors", "PIL", "tqdm", "psutil"),
    "filelock>=4.3",
)
MINUTES = 45.0  # of all stages together
COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "graphs", "TRITON_CACHE_DIR": "kernels"}  # where code is
WORKERS = 4  # tests compile a kernel each, one after the other in a process


@dataclass(frozen=True)
class Stage:
    """command: arguments of Python. needs: packages without which there is nothing to run; what
    only others could do is left out by name. minutes: its most."""

    name: str
    command: Sequence[str]
    needs: Sequence[str] = ()
    minutes: float = 5.0


def stages(out: Path, device: str, small: bool) -> list[Stage]:
    """All stages, what is worth most first. small: sizes with which a CPU takes seconds."""
    where = ("--device", device, "--out", str(out))
    timed = ("--quick", "--seconds", "0") if small else ("--drawn", "--seconds", f"{ROUNDS_S:g}")
    # Each test's line and failure are printed at once (tests/gpu/conftest.py), so the log has them
    # whatever ends the stage. A test that hangs shows where it does.
    pytest = ("-m", "pytest", "tests/gpu", "tests/kernels", "-m", "gpu or everywhere", "-v")
    pytest += ("-o", "faulthandler_timeout=120", "--continue-on-collection-errors")
    if importlib.util.find_spec("xdist"):
        pytest += ("-n", str(WORKERS))
    triton = ("triton",) if device == "cuda" else ()

    def module(name: str, *words: str) -> tuple[str, ...]:
        return ("-m", f"bench.{name}", *where, *words)

    def contests(case: str) -> tuple[str, ...]:
        return ("-m", "bench", case, *where, *timed)

    toy = ("--small",) * small
    every = [
        Stage("preflight", module("preflight")),
        Stage("tests", pytest, ("pytest", *triton)),
        Stage("kernels", contests("kernels"), ("numpy", "timm", *triton)),
        Stage("compile", module("compiled", *toy), ("numpy", "timm", *triton)),
        Stage("headline", contests("headline"), ("numpy", "timm", *triton)),
        Stage("smoke", module("campaign", "--small"), ENGINE),
        Stage("ranks", module("ranks", *toy), ENGINE),
        Stage("train", contests("train"), ENGINE),
        Stage("transport", contests("transport"), ("numpy", *triton)),
        Stage("evaluation", contests("evaluation"), ENGINE),
        Stage("engine", module("campaign", *toy), ENGINE),
    ]
    return [replace(stage, minutes=LIMITS[stage.name][0]) for stage in every]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the stages")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all stages together")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    every = {stage.name: stage for stage in stages(out, options.device, options.small)}
    if unknown := sorted(set(options.stages) - every.keys()):
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(every)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        seen = doctor.gpu(doctor.torch_facts())
        parser.error(
            f"torch sees no GPU here: {seen.detail}; fix: {seen.cure}; "
            "--device cpu --small tries the stages without one"
        )
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * options.minutes
    for name in options.stages or every:
        print(f"\n== {name}", flush=True)
        left = min(end - time.monotonic(), 60 * every[name].minutes)
        outcomes.append({"stage": name, **run(every[name], out, left)})
        summary = {"device": options.device, "rows": outcomes}
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
        (out / "results.md").write_text(written(out, outcomes), "utf-8")
        print("== " + ", ".join(f"{k} {v}" for k, v in outcomes[-1].items()), flush=True)
    for state in (NOT_RUN, RED):
        names = [outcome["stage"] for outcome in outcomes if outcome["state"] == state]
        if names:
            print(f"{state}: {', '.join(names)}")
    return int(any(outcome["state"] != GREEN for outcome in outcomes))


def run(stage: Stage, out: Path, seconds: float) -> dict[str, Any]:
    """What became of a stage: its state, its seconds, and why where it is not green. Its output is
    shown, and is kept in STAGE.log; none of its processes is left."""
    if seconds <= 0:
        return {"state": NOT_RUN, "why": "no time is left (--minutes)"}
    missing = [need for need in ("torch", *stage.needs) if not is_installed(need)]
    if missing:
        return {"state": NOT_RUN, "why": f"this Python lacks {', '.join(missing)}"}
    begin = time.monotonic()
    # What several stages take is compiled once, into the caller's folders where there are some.
    folders = {variable: str(out / "compiled" / name) for variable, name in COMPILED.items()}
    environment = folders | os.environ | {"RIB_PROGRESS": "off"}
    child = subprocess.Popen(
        [sys.executable, "-u", *stage.command], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(seconds, _end, [child])
    timer.start()
    with child, (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        assert child.stdout is not None
        for line in child.stdout:
            for file in (sys.stdout, log):
                file.write(line)
                file.flush()
    timer.cancel()
    _end(child)
    took = time.monotonic() - begin
    outcome = {"state": RED if child.returncode else GREEN, "seconds": round(took, 1)}
    if child.returncode:
        late = took >= seconds
        outcome["why"] = (
            f"stopped after {seconds:.0f} s" if late else f"exit status {child.returncode}"
        )
    return outcome


def written(out: Path, outcomes: Sequence[dict[str, Any]]) -> str:
    """Markdown tables: what became of the stages, then each file of results."""
    parts = [markdown(outcomes)]
    for file in sorted(out.glob("*-*.json")):
        results = json.loads(file.read_text("utf-8"))
        machine, versions = results["machine"], results["machine"]["versions"]
        named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm"))
        parts.append(
            f"**{results['name']}**: {machine['device']}; {named}; commit {machine['commit']}."
        )
        parts += [markdown(results["rows"])] if results["rows"] else []
        parts += [results["message"]] if "message" in results else []
    return "\n\n".join(parts) + "\n"


def _end(child: subprocess.Popen[str]) -> None:
    """End a command's session: it, and what it left behind when it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
