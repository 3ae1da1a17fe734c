"""`rib status` and `rib gc`: list a folder's campaigns, their progress and the store's content;
list what no finished campaign needs, and delete it with `--yes`."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.campaigns import holdings, job_states, status
from engine.campaigns.holdings import Held
from engine.campaigns.status import AT_WORK, DAMAGED, FINISHED, Status
from engine.store import made_by, use
from engine.store.artifacts import STORE, Store
from loaders.files.names import one_line
from loaders.files.root import Root

SHOWN = 20  # artefacts listed per kind


def run(arguments: argparse.Namespace) -> None:
    runs: Path = arguments.runs
    begun, now = holdings.campaigns(runs), time.time()
    latest = {each.place.campaign: each.place for each in begun}  # the newest plan is last
    for each in begun:
        is_latest = latest[each.place.campaign] == each.place
        found = status.read_status(each, now, is_latest=is_latest)
        print("\n".join(map(one_line, lines(found, now))))
    if not begun:
        print(f"{runs} contains no campaign")
    others, hidden = use.others(Store(runs / STORE))
    for note in (*holdings.strays(runs), *shared_lines(others), *hidden):
        print(f"note: {one_line(note)}")
    needing = [*begun, *(each for other in others for each in holdings.campaigns(other))]
    held = [*holdings.artifacts(runs, needing), *holdings.unfinished(runs)]
    print("\n".join(map(one_line, store_lines(held))))
    packs = runs / holdings.PACKS
    if packs.is_dir():
        print(f"packs  {size(holdings.size_of(packs))}")


def lines(status: Status, now: float) -> list[str]:
    """A campaign's lines; the first has its name, state and age."""
    done, cells = status.cells
    age = now - status.since
    ago = f"{span(age)} ago" if age >= 0 else "in the future, by this machine's clock"
    of_replicates = f" ({status.replicates} of seed replicates)" if status.replicates else ""
    if status.state == DAMAGED:
        return [f"{status.name}  damaged: {status.error}"]
    if status.state == FINISHED:
        return [f"{status.name}  finished {ago}, {cells} cells{of_replicates}"]
    cells_done = f"{done} of {cells} cells{of_replicates}"
    shown = [f"{status.name}  {status.state}, last job started {ago}, {cells_done}"]
    doing = status.doing if status.state == AT_WORK else ""
    shown.append(f"  jobs: {job_states.text(status.jobs, doing)}")
    if status.seconds is not None:
        shown.append(f"  about {span(status.seconds)} left, at the speed so far")
    if status.error:
        shown.append(f"  last error: {status.error.splitlines()[0]}")
    return shown


def shared_lines(others: Mapping[Path, Path]) -> list[str]:
    """Other runs folders that use the store. others: as of `use.others`."""
    return [
        f"{folder} shares the store; if it no longer needs the store, delete {file}"
        for folder, file in others.items()
    ]


def store_lines(held: Sequence[Held]) -> list[str]:
    """The store's content by kind, and by the campaigns that need it."""
    if not held:
        return []
    kinds: dict[str, list[int]] = defaultdict(list)
    users: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for each in held:
        kinds[each.artifact.kind].append(each.size)
        users[each.needed_by].append(each.size)
    shown = [f"store  {size(sum(each.size for each in held))}"]
    shown += [f"  {size(sum(sizes)):>8}  {kind} ({len(sizes)})" for kind, sizes in kinds.items()]
    for names, sizes in sorted(users.items(), reverse=True):
        of_names = f"for {', '.join(dict.fromkeys(names))}"
        whom = of_names if names else "needed by no finished campaign (`rib gc`)"
        shown.append(f"  {size(sum(sizes)):>8}  {whom}")
    return shown + made_by_lines(held)


def made_by_lines(held: Sequence[Held]) -> list[str]:
    """The artefacts that other code or versions than the installed ones made, by difference; and
    the kinds of device that made artefacts, if there are several."""
    others: dict[str, list[Held]] = defaultdict(list)
    for each in held:
        if words := made_by.differences(each.made_by, made_by.installed()):
            others[", ".join(words)].append(each)
    shown = []
    for words, of_words in others.items():
        names = sorted({name for each in of_words for name in each.needed_by})
        whom = f", for {', '.join(names)}" if names else ""
        shown.append(f"  made by other code or versions ({words}): {len(of_words)} artefacts{whom}")
    devices = sorted({each.made_by.get(made_by.DEVICE, "") for each in held} - {""})
    return shown + ([f"  made on {', '.join(devices)}"] if len(devices) > 1 else [])


def gc(arguments: argparse.Namespace) -> None:
    runs: Path = arguments.runs
    store = Store(runs / STORE)
    deletes = arguments.yes and store.root.is_dir()
    with use.alone(store) if deletes else contextlib.nullcontext():
        others, hidden = use.others(store)
        before = [(holdings.strays(each), holdings.changed(each)) for each in (runs, *others)]
        begun = {each: holdings.campaigns(each) for each in (runs, *others)}
        needing = [each for of_folder in begun.values() for each in of_folder]
        found = [each for each in holdings.artifacts(runs, needing) if not each.needed_by]
        left = holdings.unfinished(runs)
        for note in shared_lines(others):
            print(f"note: {one_line(note)}")
        print("\n".join(unneeded_lines([*found, *left])))
        doubts = [*hidden, *(text for each in begun for text in holdings.doubts(each, begun[each]))]
        if (total := sum(each.size for each in [*found, *left])) and doubts:
            more = [f"and {len(doubts) - SHOWN} more"] if len(doubts) > SHOWN else []
            kept = "\n  ".join(["it is kept:", *map(one_line, doubts[:SHOWN]), *more])
            if arguments.yes:
                raise ValueError(f"nothing was deleted; {kept}")
            print(kept)
            return
        if not deletes or not total:
            print("nothing was deleted" + ("; --yes deletes it" if total else ""))
            return
        for each in [*found, *left]:
            now = [(holdings.strays(folder), holdings.changed(folder)) for folder in begun]
            if now != before:
                raise ValueError(f"{runs} was changed meanwhile: run `rib gc` again")
            if each in found:
                store.remove(each.artifact)
            else:
                Root(runs).remove(each.artifact.folder)
        stayed = sum(each.size for each in holdings.unfinished(runs))
    print(f"deleted {size(total - stayed)}")
    if stayed:
        raise PermissionError(f"{size(stayed)} in {store.root} could not be deleted")


def unneeded_lines(found: Sequence[Held]) -> list[str]:
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


def size(count: float) -> str:
    """A number of bytes as text, such as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def span(seconds: float) -> str:
    """A duration as text: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
