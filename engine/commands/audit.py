"""`rib audit`: check a published folder. Imports no torch."""

from __future__ import annotations

import argparse

from engine.machine.terminal import announce


def run(arguments: argparse.Namespace) -> int:
    announce(f"computing the numbers of {arguments.folder}")
    from engine.exchange.audit import audit  # late: it imports pandas
    from engine.report.sections import about

    found = audit(arguments.folder, arguments.runs)
    for name, how in found.images.items():
        print(f"images of {name}: {how}")
    for problem in found.problems:
        print(f"problem: {problem}")
    if found.problems:
        print(f"{arguments.folder} does not pass: see above")
        return 1
    for line in about.left_out(found.results) if found.results else ():
        print(line)
    print(f"{arguments.folder} passes: its numbers follow from its predictions")
    return 0
