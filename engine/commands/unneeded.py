"""`rib gc`: list what no finished campaign needs, and delete it with `--yes`."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands.status import size

if TYPE_CHECKING:
    from engine.campaigns.holdings import Begun, Held

SHOWN = 20  # artefacts listed per kind


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("gc", help="list or delete what no finished campaign needs")
    parser.add_argument(
        "runs", nargs="?", type=Path, default=Path("runs"), help="folder (default: runs)"
    )
    parser.add_argument("--yes", action="store_true", help="delete it (default: only list it)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine.campaigns import holdings
    from engine.store.artifacts import STORE, Store
    from loaders.files import locks

    runs: Path = arguments.runs
    if not runs.is_dir():
        raise ValueError(f"there is no folder {runs}: give the folder of your runs")
    begun = holdings.campaigns(runs)
    unfinished = [each for each in begun if each.record is None]
    held = holdings.artifacts(runs, begun)
    found = holdings.unneeded(held, begun)
    print("\n".join(lines(found, unfinished)))
    if not found or not arguments.yes:
        print("nothing was deleted" + ("; --yes deletes it" if found else ""))
        return
    places = {each.place.lock for each in begun}
    trainings = (runs / STORE / "locks").glob("*")
    if at_work := [path for path in (*places, *trainings) if locks.is_held(path)]:
        raise ValueError(f"{locks.holder(at_work[0])} is using {runs}: wait until it ends")
    store = Store(runs / STORE)
    for each in found:
        store.remove(each.artifact)
    print(f"deleted {size(sum(each.size for each in found))}")


def lines(found: Sequence[Held], unfinished: Sequence[Begun]) -> list[str]:
    """What can be deleted, by kind, and what is kept for unfinished campaigns."""
    kinds: dict[str, list[Held]] = defaultdict(list)
    for each in found:
        kinds[each.artifact.kind].append(each)
    shown = [f"{size(sum(each.size for each in found))} is needed by no finished campaign"]
    for kind, of_kind in kinds.items():
        shown.append(f"{kind}: {len(of_kind)}, {size(sum(each.size for each in of_kind))}")
        shown += [f"  {each.artifact.name}  {size(each.size)}" for each in of_kind[:SHOWN]]
        shown += [f"  and {len(of_kind) - SHOWN} more"] if len(of_kind) > SHOWN else []
    if unfinished:
        names = ", ".join(dict.fromkeys(each.name for each in unfinished))
        shown.append(
            f"cells, weights and predictions are kept while {names} is unfinished: finish it, or "
            f"delete its plan ({unfinished[0].place.path})"
        )
    return shown
