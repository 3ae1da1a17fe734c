"""Runs bench cases: gate first, then interleaved times, one table, and JSON beside it.

A case whose gate is red is not timed, and one that fails half-way keeps the rows it has; both say
so in the JSON and make the exit status 1. One whose packages are missing is skipped by name. A
missed target is printed, and does not change the exit status: times depend on what else the machine
does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import contest, peers, report, roofline


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.cases) - set(contest.CASES))
    if unknown:
        print(f"no case {', '.join(unknown)}; there are {', '.join(contest.CASES)}")
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no GPU here")
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    about = report.machine(device)
    scale = contest.Scale(options.quick, options.batch, options.full)
    ceiling = roofline.measure(device, options.quick)
    print(report.header(about, ceiling))
    everything: dict[str, Any] = {}
    failed = False
    for name in options.cases or contest.CASES:
        print(f"\n{name}")
        try:
            case = contest.load(name)
        except ImportError as error:
            print(f"skipped: {error}")
            continue
        try:
            case.gate(device)
        except Exception as error:  # a kernel that does not compile must not stop the other cases
            reason = str(error) if isinstance(error, AssertionError) else _named(error)
            print(f"NOT TIMED, its gate is red: {reason}")
            failed = True
            failure = {"gate": "red", "message": reason}
            everything[name] = report.content([], about, ceiling) | failure
            if not (options.quick or options.json):
                report.save(name, everything[name])
            continue
        rows: list[contest.Row] = []
        printed = report.markdown if options.markdown else report.table
        peers.SKIPPED.clear()
        message = {}
        try:
            for current in case.contests(device, scale):
                timed = contest.hold(current, ceiling, device, seconds=options.seconds)
                print(printed(timed, heads=not rows), flush=True)
                rows += timed
                del current  # before the next is built: two would not fit
        except Exception as error:  # nor one that fails half-way
            message = {"message": _named(error)}
            print(f"{name} FAILED, the rows before it are kept: {message['message']}")
            failed = True
        print(report.rates(rows), end="\n" if rows and rows[0].rates else "")
        everything[name] = report.content(rows, about, ceiling) | message
        everything[name]["skipped"] = list(peers.SKIPPED)
        if not (options.quick or options.json):
            report.save(name, everything[name])
    if options.json:
        report.write(options.json, everything)
    return int(failed)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(contest.CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each contest's rounds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--batch", type=int, help="images a model's step (64; CUDA: 256)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it; not kept")
    parser.add_argument("--full", action="store_true", help="also sizes that take peers minutes")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=Path, help="all results here, not in bench/results/")
    return parser


if __name__ == "__main__":
    os.environ["RIB_PROGRESS"] = "off"  # a table is printed
    sys.exit(main())
