"""Our speed as a ratio to named peers: `python -m bench [case ...]`.

A contest's entrants must give the same before they are timed. A case that fails keeps the rows it
has and makes the exit status 1; so does one that measures nothing for lack of a package. Rows go to
bench/results/CASE-DEVICE.json as soon as they are known.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import contest
from bench.contest import CASES, TABLES, Scale
from bench.report import RESULTS, Results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join((*CASES, *TABLES)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each contest's rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it; not kept")
    parser.add_argument("--full", action="store_true", help="also sizes that take peers minutes")
    parser.add_argument("--drawn", action="store_true", help="pictures of noise, not photos")
    parser.add_argument("--out", type=Path, help="folder of the results; quick ones are kept too")
    options = parser.parse_args(arguments)
    every = (*CASES, *TABLES)
    if unknown := sorted(set(options.cases) - set(every)):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(every)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    os.environ["RIB_PROGRESS"] = "off"
    device = torch.device(options.device)
    scale = Scale(options.quick, options.full, options.drawn)
    folder = options.out or (None if options.quick else RESULTS)
    cases = options.cases or every
    failed = [name for name in cases if not _case(name, device, scale, folder, options.seconds)]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def _case(
    name: str, device: torch.device, scale: Scale, folder: Path | None, seconds: float
) -> bool:
    """Whether it went well."""
    results = Results(folder, name, device)
    machine = results.content["machine"]
    print(f"\n{name}: {machine['device']}, {machine['threads']} threads, load {machine['load']}")
    contest.SKIPPED.clear()
    try:
        for row in contest.rows(name, device, scale, seconds):
            results.add(row, contest.KEY)
    except ModuleNotFoundError as error:
        print(f"skipped: {error}")
        return bool(results.content["rows"])
    except Exception as error:  # the next case is timed all the same
        message = f"{type(error).__name__}: {error}"
        print(f"{name} FAILED, the rows before it are kept: {message}")
        results.write(message=message)
        return False
    results.write(skipped=list(contest.SKIPPED))
    return True


if __name__ == "__main__":
    sys.exit(main())
