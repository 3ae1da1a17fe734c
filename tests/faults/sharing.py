"""Kind `shared`: a store that two runs folders have by a mount, and `rib gc` of one of them."""

import copy
import random
import shutil
from pathlib import Path

from engine import cli
from engine.campaigns import holdings
from engine.store.artifacts import MARKER
from faults import forked
from faults.campaign import FINISHED, Campaign
from faults.disk import mounted
from faults.forked import require
from helpers import runs_folders

STATES = ("there", "moved", "away", "not mounted")  # of the other folder when `rib gc` runs
MOST_CHANGES = 60  # of a `rib gc`, about


def shared(campaign: Campaign, rng: random.Random) -> str:
    """`rib gc --yes`, killed or not, deletes nothing that a campaign of the other folder needs."""
    state, at = rng.choice(STATES), rng.choice((0, rng.randint(1, MOST_CHANGES)))
    done = f"`rib gc` of a folder, killed at change {at}, with the other one {state}"
    campaign.restore(FINISHED)
    runs, other = campaign.runs, copy.copy(campaign)
    other.runs = runs.with_name("other")
    other.words = [f"runs={other.runs}", *campaign.words[1:]]
    shutil.rmtree(other.runs, ignore_errors=True)
    (other.runs / "store").mkdir(parents=True)
    with mounted(["--bind", str(runs / "store"), str(other.runs / "store")], other.runs / "store"):
        other.check(other.run(), "a mount of the store")
        needed = needed_by(other.runs)
    for folder in runs.glob("shapes*"):
        shutil.rmtree(folder)
    runs_folders.finish(runs_folders.begun(runs), [])
    moved = other.runs.with_name("moved")
    if state in ("moved", "away"):
        other.runs.rename(moved)
    place = moved if state == "moved" else other.runs
    if state in ("there", "moved"):
        with mounted(["--bind", str(runs / "store"), str(place / "store")], place / "store"):
            other.runs, other.words = place, [f"runs={place}", *campaign.words[1:]]
            other.check(other.run(), state)
            ended = gc(campaign, at)
    else:
        ended = gc(campaign, at)
    require(at or ended.code == (2 if state == "away" else 0), f"{done}: {ended.text[-1500:]}")
    lost = [name for name in needed if not (runs / "store" / name / MARKER).is_file()]
    require(not lost, f"after {done}, {lost} are gone")
    shutil.rmtree(moved, ignore_errors=True)
    shutil.rmtree(runs.with_name("other"), ignore_errors=True)
    return done


def needed_by(runs: Path) -> set[str]:
    """Kind and name of the artefacts that finished campaigns in a folder need."""
    held = holdings.artifacts(runs, holdings.campaigns(runs))
    needed = {f"{each.artifact.kind}/{each.artifact.name}" for each in held if each.needed_by}
    require(needed, f"no campaign in {runs} needs anything")
    return needed


def gc(campaign: Campaign, at: int) -> forked.Ended:
    """`rib gc --yes`, killed before change number `at` unless that is 0."""

    def work() -> int:
        forked.before_change(campaign.runs, at, forked.die)
        return cli.main(["gc", str(campaign.runs), "--yes"])

    return forked.run(work, campaign.folder / "log")
