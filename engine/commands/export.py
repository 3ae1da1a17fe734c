"""`rib export`: a row of a campaign's table, or a cell, as a folder that timm loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import refuse_overwriting
from engine.grid import record
from engine.machine import first_line

if TYPE_CHECKING:
    from engine.data.descriptions import DescribedModel

OF_CAMPAIGN = ("method", "downstream", "setting", "seed")  # options that choose among its rows


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export", help="write a campaign's model as a folder for timm or open_clip"
    )
    parser.add_argument(
        "source",
        metavar="CAMPAIGN | CELL",
        help="a finished campaign, or a folder of runs/store/cells",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the campaign")
    parser.add_argument("--method", help="of the campaign's table, or pre: the pre-trained model")
    parser.add_argument("--set", dest="downstream", help="that it was fine-tuned on")
    parser.add_argument("--setting", help="of what a campaign varies, as train.epochs=2")
    parser.add_argument("--alpha", type=float, help="of WiSE-FT's several")
    parser.add_argument("--seed", type=int, help="of a campaign's several")
    parser.add_argument("--classes", type=Path, help="the head's class names, a line each")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the model")
    parser.add_argument("--force", action="store_true", help="write over the model in DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    refuse_overwriting(arguments.out, arguments.force, is_folder=True)
    first_line.show(f"reading {arguments.source}")
    folder = Path(arguments.source)
    is_cell = (folder / "cell.json").is_file()
    chosen = [name for name in OF_CAMPAIGN if getattr(arguments, name) is not None]
    if is_cell and (chosen or arguments.overrides):
        raise ValueError(f"{folder} is a single cell; only --alpha chooses in it")
    campaign = None if is_cell else record.find(arguments.source, arguments.overrides)
    from engine.data import descriptions
    from engine.grid import export

    evaluation = None
    if campaign is None:
        row = export.row_of_cell(folder.resolve(), arguments.alpha)
    else:
        evaluation = export.choose(campaign.record.evaluations, vars(arguments))
        row = export.row_of_campaign(campaign, evaluation)
    write(row, arguments.out, descriptions.listed(arguments.classes) if arguments.classes else ())
    if evaluation is not None and campaign is not None:
        from engine.report import model_card

        for file in model_card.write(arguments.out, campaign, evaluation):
            print(f"model card: {file}")


def write(row: DescribedModel, out: Path, classes: Sequence[str] = ()) -> None:
    """Write a model as a folder for timm or open_clip, and say how it is loaded."""
    from engine.grid import export
    from engine.report import model_card
    from engine.store.tensors import PROMPT

    model_card.remove(out)  # of a model that was there
    written = export.write(row, out, classes)
    print(f"{row.title}, {written.classes} classes: {out}")
    if (out / PROMPT).is_file():
        print(
            "warning: the model lacks the input prompt and answers differently without it; add "
            f"the tensor in {out / PROMPT} to every normalised image"
        )
    print(written.how)
