"""`rib gc`: list what no finished campaign needs, and delete it with `--yes`."""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from engine.campaigns import holdings
from engine.campaigns.holdings import Held
from engine.commands.status import size
from engine.store.artifacts import STORE, Artifact, Store
from loaders.files.names import one_line

SHOWN = 20  # artefacts listed per kind


def run(arguments: argparse.Namespace) -> None:
    runs: Path = arguments.runs
    store = Store(runs / STORE)
    deletes = arguments.yes and store.root.is_dir()
    with store.alone() if deletes else contextlib.nullcontext():
        before = holdings.strays(runs), holdings.changed(runs)
        begun = holdings.campaigns(runs)
        found = [each for each in holdings.artifacts(runs, begun) if not each.needed_by]
        left = [Held(Artifact(path), holdings.size_of(path), ()) for path in store.left_overs()]
        total = sum(each.size for each in [*found, *left])
        print("\n".join(lines([*found, *left])))
        if total and (doubts := holdings.doubts(runs, begun)):
            more = [f"and {len(doubts) - SHOWN} more"] if len(doubts) > SHOWN else []
            kept = "\n  ".join(["it is kept:", *map(one_line, doubts[:SHOWN]), *more])
            if arguments.yes:
                raise ValueError(f"nothing was deleted; {kept}")
            print(kept)
            return
        if not deletes or not total:
            print("nothing was deleted" + ("; --yes deletes it" if total else ""))
            return
        for each in found:
            if (holdings.strays(runs), holdings.changed(runs)) != before:
                raise ValueError(f"{runs} was changed meanwhile: run `rib gc` again")
            store.remove(each.artifact)
        for each in left:
            store.files.remove(each.artifact.folder)
        stayed = sum(map(holdings.size_of, store.left_overs()))
    print(f"deleted {size(total - stayed)}")
    if stayed:
        raise PermissionError(f"{size(stayed)} in {store.root} could not be deleted")


def lines(found: Sequence[Held]) -> list[str]:
    """What no finished campaign needs, by kind."""
    kinds: dict[str, list[Held]] = defaultdict(list)
    for each in found:
        kinds[each.artifact.kind].append(each)
    shown = [f"{size(sum(each.size for each in found))} is needed by no finished campaign"]
    for kind, of_kind in kinds.items():
        shown.append(f"{kind}: {len(of_kind)}, {size(sum(each.size for each in of_kind))}")
        shown += [
            f"  {one_line(each.artifact.name)}  {size(each.size)}" for each in of_kind[:SHOWN]
        ]
        shown += [f"  and {len(of_kind) - SHOWN} more"] if len(of_kind) > SHOWN else []
    return shown
