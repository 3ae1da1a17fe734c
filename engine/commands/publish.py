"""`rib publish` and `rib audit`: write a campaign as a folder that anybody can check; check it."""

from __future__ import annotations

import argparse

from engine.commands import report
from engine.errors import CampaignError
from engine.machine.terminal import announce


def run(arguments: argparse.Namespace) -> None:
    announce(f"reading the predictions of {arguments.name}")
    found = report.finished(arguments.name, arguments.overrides)
    if len(found) > 1:
        raise CampaignError(f"{arguments.name} has {len(found)} models: give the folder of one")
    from engine.exchange.publish import publish  # late: it imports pandas

    publish(found[0], arguments.out, weights=arguments.weights)
    print(
        f"published  {arguments.out.resolve()}\n"
        f"check it   rib audit {arguments.out}\n"
        "share it   create a data set repository and upload the folder: "
        f"hf upload USER/NAME {arguments.out} --repo-type dataset"
    )


def audit(arguments: argparse.Namespace) -> int:
    announce(f"computing the numbers of {arguments.folder}")
    from engine.exchange import audit  # late: it imports pandas
    from engine.report.sections import about

    found = audit.audit(arguments.folder, arguments.runs)
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
