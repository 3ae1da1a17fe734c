"""`rib status`: list the campaigns of a runs folder, their progress, and the store's content."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from engine.campaigns import holdings, job_states, status
from engine.campaigns.holdings import Held
from engine.campaigns.status import AT_WORK, DAMAGED, FINISHED, Status
from loaders.files.names import one_line


def run(arguments: argparse.Namespace) -> None:
    runs: Path = arguments.runs
    begun, now = holdings.campaigns(runs), time.time()
    latest = {each.place.campaign: each.place for each in begun}  # the newest plan is last
    for each in begun:
        is_latest = latest[each.place.campaign] == each.place
        print("\n".join(map(one_line, lines(status.of(each, now, is_latest=is_latest), now))))
    if not begun:
        print(f"{runs} contains no campaign")
    for stray in holdings.strays(runs):
        print(f"note: {one_line(stray)}")
    print("\n".join(map(one_line, store_lines(holdings.artifacts(runs, begun)))))
    packs = runs / holdings.PACKS
    if packs.is_dir():
        print(f"packs  {size(holdings.size_of(packs))}")


def lines(status: Status, now: float) -> list[str]:
    """A campaign's lines; the first has its name, state and age."""
    done, cells = status.cells
    ago = f"{span(now - status.since)} ago"
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
    for kind, sizes in kinds.items():
        shown.append(f"  {size(sum(sizes)):>8}  {kind} ({len(sizes)})")
    for names, sizes in sorted(users.items(), reverse=True):
        whom = ", ".join(dict.fromkeys(names)) or "needed by no finished campaign (`rib gc`)"
        shown.append(
            f"  {size(sum(sizes)):>8}  for {whom}" if names else f"  {size(sum(sizes)):>8}  {whom}"
        )
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
