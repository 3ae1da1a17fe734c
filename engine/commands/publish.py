"""`rib publish`: write a finished campaign as a folder that anybody can check."""

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
