"""Runs the stages of `make gpu` one after the other, each in processes of its own.

    python -m bench.gpu [STAGE ...] [--out FOLDER]
    python -m bench.gpu --device cpu --small      every stage on a CPU, to see that it runs

A stage that fails or takes too long is red and does not stop the others; one whose packages are
missing is not run, and they are named. After each stage FOLDER/summary.json says what became of it,
and FOLDER/results.md has all results as tables, so that nobody types a number. Exit status: 1 where
a stage is red or none could run, 2 for words that fit nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.stages import MINUTES, Stage, chosen, python, stages
from bench.report import RESULTS, ROOT, markdown

GREEN, RED, NOT_RUN = "green", "red", "not run"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out = options.out.resolve()
    try:
        todo = chosen(options.stages, stages(out, options.device, options.small))
    except ValueError as error:
        print(error)
        return 2
    if options.device == "cuda" and not _sees_gpu():
        print("torch sees no GPU here; --device cpu --small tries the stages without one")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[dict[str, Any]] = []
    for stage in todo:
        print(f"\n== {stage.name}", flush=True)
        outcomes.append({"stage": stage.name, **run(stage, out, 60 * options.minutes)})
        summary = {"device": options.device, "rows": outcomes}
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (out / "results.md").write_text(written(out, outcomes))
        print("== " + ", ".join(f"{k} {v}" for k, v in outcomes[-1].items()), flush=True)
    for state in (NOT_RUN, RED):
        names = [outcome["stage"] for outcome in outcomes if outcome["state"] == state]
        if names:
            print(f"{state}: {', '.join(names)}")
    states = {outcome["state"] for outcome in outcomes}
    return int(RED in states or GREEN not in states)


def run(stage: Stage, out: Path, seconds: float) -> dict[str, Any]:
    """What became of a stage: its state, its seconds, and why where it is not green.

    Its output is shown, and is kept in STAGE.log. A command that fails does not stop the next one.
    """
    if stage.missing:
        return {"state": NOT_RUN, "why": f"this Python lacks {', '.join(stage.missing)}"}
    begin = time.monotonic()
    faults = []
    with (out / f"{stage.name}.log").open("w") as log:
        for command in stage.commands:
            left = seconds - (time.monotonic() - begin)
            fault = _run(python(command), log, left)
            if fault:
                faults.append(f"{' '.join(command[:3])}: {fault}")
    took = {"seconds": round(time.monotonic() - begin, 1)}
    return {"state": RED, **took, "why": "; ".join(faults)} if faults else {"state": GREEN, **took}


def written(out: Path, outcomes: Sequence[dict[str, Any]]) -> str:
    """Markdown tables: what became of the stages, then each file of results."""
    parts = [markdown(outcomes)]
    for file in sorted(out.glob("*-*.json")):
        results = json.loads(file.read_text())
        machine, versions = results["machine"], results["machine"]["versions"]
        named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm"))
        parts.append(
            f"**{results['name']}**: {machine['device']}; {named}; commit {machine['commit']}."
        )
        parts += [markdown(results["rows"])] if results["rows"] else []
        parts += [results["message"]] if "message" in results else []
    return "\n\n".join(parts) + "\n"


def _run(command: list[str], log: Any, seconds: float) -> str:
    """Why a command failed; empty where it did not. All its processes are gone afterwards."""
    if seconds <= 0:
        return "no time was left for it"
    environment = os.environ | {"RIB_PROGRESS": "off"}
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + seconds
    timer = threading.Timer(seconds, _end, [child])
    timer.start()
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            log.write(line)
            log.flush()
    timer.cancel()
    _end(child)
    if time.monotonic() >= end:
        return f"stopped after {seconds:.0f} s"
    return f"exit status {child.returncode}" if child.returncode else ""


def _end(child: subprocess.Popen[str]) -> None:
    """End a command's session: it, and what it left behind when it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _sees_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the stages")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of each stage at most")
    return parser


if __name__ == "__main__":
    sys.exit(main())
