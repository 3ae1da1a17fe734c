"""`rib gc`: only what is provably the engine's own, and needed by nobody, is deleted."""

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns import record, seal
from engine.campaigns.plan_folder import PlanFolder
from engine.store import artifacts
from engine.store.artifacts import MARKER, UNFINISHED, Store
from faults import forked
from helpers.runs_folders import artifact, begun, finish
from loaders.files import locks

LEFT_OVER = ".ewc-few-0123456789abcdef.01234567"


@pytest.fixture
def runs(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def gc(runs, capsys) -> Callable[..., str]:
    """What `rib gc` prints for the runs folder, which it may refuse."""

    def run(*words: str, refused: bool = False) -> str:
        assert cli.main(["gc", str(runs), *words]) == (2 if refused else 0)
        return "".join(capsys.readouterr())

    return run


def left(runs: Path) -> set[str]:
    """Kind and name of all artefacts in the store."""
    paths = (runs / "store").glob(f"*/*/{MARKER}")
    return {path.parent.relative_to(runs / "store").as_posix() for path in paths}


def test_what_no_finished_campaign_needs_goes(runs, gc):
    needed, alone = (artifact(runs, "cells", name, 3000) for name in ("a", "b"))
    features = artifact(runs, "features", "c", 500)
    finish(begun(runs), [needed])
    shown = gc()
    assert f"{alone.partition('/')[2]}  3." in shown and "--yes deletes it" in shown
    assert left(runs) == {needed, alone, features}
    assert "deleted 3." in gc("--yes") and left(runs) == {needed}
    assert "nothing was deleted" in gc("--yes")


def test_a_record_without_its_plan_counts(runs, gc):
    needed = artifact(runs, "cells", "a", 3000)
    finish(plan := begun(runs), [needed])
    plan.place.plan.unlink()
    assert "nothing was deleted" in gc("--yes") and left(runs) == {needed}


def _unfinished(runs: Path, _: Path) -> str:
    return f"other is unfinished: finish it, or delete its plan ({begun(runs, 'other').place.path})"


def _damaged_plan(runs: Path, place: Path) -> str:
    (plan := place / "plan.json").write_text("{}")
    return f"{plan} was altered; run `rib campaign` again"


def _damaged_record(runs: Path, place: Path) -> str:
    (found := place / "evaluations.json").write_text("{}")
    return f"{found} was altered; delete it and run `rib campaign` again"


def _linked(runs: Path, path: Path) -> str:
    elsewhere = runs.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return f"{path} is a link, which is not followed: move what it leads to here"


def _in_a_group(runs: Path, place: Path) -> str:
    (runs / "group").mkdir()
    place.parents[1].rename(runs / "group" / "emoji")
    return f"{place.name} is not in {runs}/CAMPAIGN/plans: move its campaign there"


def _unreadable(runs: Path, place: Path) -> str:
    return f"{place.parents[1]} cannot be read (Permission denied): make it readable"


KEPT: dict[str, Callable[[Path, Path], str]] = {
    "unfinished": _unfinished,
    "damaged plan": _damaged_plan,
    "damaged record": _damaged_record,
    "linked record": lambda runs, place: _linked(runs, place / "evaluations.json"),
    "linked plan": lambda runs, place: _linked(runs, place),
    "linked plans": lambda runs, place: _linked(runs, place.parent),
    "linked campaign": lambda runs, place: _linked(runs, place.parents[1]),
    "group": _in_a_group,
    "unreadable": _unreadable,
}


@pytest.mark.parametrize("case", KEPT)
def test_while_a_campaign_may_need_more_everything_is_kept(case, runs, gc, monkeypatch):
    needed, alone = (artifact(runs, "cells", name, 3000) for name in ("a", "b"))
    features = artifact(runs, "features", "c", 500)
    finish(plan := begun(runs), [needed])
    reason = KEPT[case](runs, plan.place.path)
    if case == "unreadable":  # root, who runs tests in containers, reads all folders
        scandir = os.scandir

        def refuse(path):
            if path == plan.place.campaign:
                raise PermissionError(13, os.strerror(13), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
    assert reason in gc() and reason in gc("--yes", refused=True)
    assert left(runs) == {needed, alone, features}


def test_a_store_without_a_campaign_is_kept(runs, gc):
    cell = artifact(runs, "cells", "a", 3000)
    assert f"{runs} contains no campaign" in gc("--yes", refused=True)
    assert left(runs) == {cell}


def test_a_link_to_a_folder_that_is_looked_through_is_no_reason(runs, gc):
    """As wandb makes them."""
    artifact(runs, "cells", "a", 3000)
    finish(begun(runs), [])
    (runs / "wandb" / "run-1").mkdir(parents=True)
    (runs / "wandb" / "latest-run").symlink_to("run-1")
    gc("--yes")
    assert not left(runs)


def test_snapshots_stay_with_their_cells(runs, gc):
    cell = artifact(runs, "cells", "a", 3000)
    kept = artifact(runs, "snapshots", "a-step1", 9, cell=cell.partition("/")[2], step=1)
    artifact(runs, "snapshots", "b-step1", 9, cell="b", step=1)
    finish(begun(runs), [cell])
    gc("--yes")
    assert left(runs) == {cell, kept}


def test_what_is_not_the_engines_stays(runs, gc):
    gone = artifact(runs, "cells", "a", 3000)
    finish(begun(runs), [])
    store = runs / "store"
    theirs = {"thesis/final", gone.replace("cells", "copies"), "cells/of mine", f"{gone}-old"}
    for name in theirs:
        shutil.copytree(store / gone, store / name)
    assert not any(name.partition("/")[2] in gc() for name in theirs - {"copies"} if "mine" in name)
    gc("--yes")
    assert left(runs) == theirs


def test_left_overs_of_killed_commands_go(runs, gc):
    finish(begun(runs), [])
    for name in (LEFT_OVER, LEFT_OVER.replace("few", "tinted")):
        (runs / "store" / "cells" / name).mkdir(parents=True)
        (runs / "store" / "cells" / name / "weights").write_bytes(bytes(2000))
    (runs / "store" / "cells" / LEFT_OVER / UNFINISHED).touch()
    assert f"{LEFT_OVER}  2 kB" in gc()
    assert "deleted 4 kB" in gc("--yes") and not list((runs / "store" / "cells").iterdir())


def test_nothing_goes_while_a_command_uses_the_store(runs, gc):
    cell = artifact(runs, "cells", "a", 3000)
    finish(begun(runs), [])
    with Store(runs / "store").in_use(), Store(runs / "store").in_use():
        assert "is using" in gc("--yes", refused=True)
    assert left(runs) == {cell}
    gc("--yes")
    assert not left(runs)


def test_names_are_shown_in_one_line_without_control_characters(runs, gc):
    artifact(runs, "cells", "a\u202eb", 3000)
    (runs / "x\x1b[2J\nerror: forged").symlink_to("nowhere")
    shown = gc() + gc("--yes", refused=True)
    assert "\x1b" not in shown and "\nerror: forged" not in shown and "\u202e" not in shown
    assert r"x\x1b[2J\nerror: forged is a link" in shown and r"a\u202eb" in shown


@pytest.mark.slow
def test_a_report_is_the_same_once_what_nobody_needs_is_gone(finished, runs, gc):
    shutil.copytree(finished, runs, dirs_exist_ok=True)
    kinds = {path.name for path in (runs / "store").iterdir() if path.is_dir()}
    assert kinds <= {*artifacts.KINDS, "pending", "locks"} and "features" in kinds
    report = runs / "shapes" / "report"
    tables = {path: path.read_bytes() for path in report.glob("*.csv")}
    gc("--yes")
    assert not [*(runs / "store" / "features").iterdir()]
    for path in tables:
        path.unlink()
    assert cli.main(["report", str(runs / "shapes")]) == 0
    assert len(tables) > 3 and tables == {path: path.read_bytes() for path in report.glob("*.csv")}


class World:
    """A random runs folder: artefacts, one to three campaigns, things of the user's.

    campaigns: their names. doubt: whether anything may hide a campaign. ours: artefacts and
    left-overs that nobody needs.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.runs, self.rng = folder, folder / "runs", rng
        self.doubt = False
        kinds = rng.choices(["cells", "weights", "predictions", "fisher"], k=rng.randint(3, 9))
        made = [artifact(self.runs, kind, f"label{k}", 9) for k, kind in enumerate(kinds)]
        of_cells = [name.partition("/")[2] for name in made if name.startswith("cells")]
        self.snapshots = {
            artifact(self.runs, "snapshots", cell, 9, cell=cell): f"cells/{cell}"
            for cell in of_cells
            if rng.random() < 0.5
        }
        self.campaigns = [f"campaign{k}" for k in range(rng.randint(1, 3))]
        self.ours = {*made, *self.snapshots}
        for name in self.campaigns:
            finish(begun(self.runs, name), needed := self.some(made))
            self.need(needed)
        for theirs in self.some(["thesis/final", "cells/renamed", "cells/.cache"]):
            shutil.copytree(self.store / made[0], self.store / theirs)
        if rng.random() < 0.4:
            shutil.copytree(self.store / made[0], self.store / "cells" / LEFT_OVER)
            self.ours.add(f"cells/{LEFT_OVER}")

    @property
    def store(self) -> Path:
        return self.runs / "store"

    def need(self, names: Collection[str]) -> None:
        """A finished campaign needs these artefacts, and so the snapshots of its cells."""
        self.ours -= {*names, *(each for each, cell in self.snapshots.items() if cell in names)}

    def some(self, names: list[str]) -> list[str]:
        return [name for name in names if self.rng.random() < 0.4]

    def rearrange(self) -> None:
        """What users do to their folders."""
        name = self.rng.choice(self.campaigns)
        campaign = self.runs / name
        (place,) = (campaign / "plans").iterdir()
        act = self.rng.choice(["no", "no", "no", "rename", "link", "group", "damage", "begin"])
        self.doubt = act not in ("no", "rename")
        if act == "rename":
            campaign.rename(self.runs / "my thesis")
        elif act == "link":
            path = self.rng.choice(
                [campaign, campaign / "plans", place, place / "evaluations.json"]
            )
            elsewhere = self.folder / self.rng.choice(["disk", "runs/group"]) / path.name
            elsewhere.parent.mkdir()
            shutil.move(path, elsewhere)
            path.symlink_to(elsewhere)
            self.doubt = elsewhere != self.runs / "group" / "plans"  # a campaign in its place
        elif act == "group":
            (self.runs / "group").mkdir()
            campaign.rename(self.runs / "group" / name)
        elif act == "damage":
            (place / self.rng.choice(["plan.json", "evaluations.json"])).write_text("{}")
        elif act == "begin":
            begun(self.runs, "new")

    def files(self) -> dict[str, bytes]:
        """All files but locks."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {
            str(p.relative_to(self.folder)): p.read_bytes() for p in paths if p.suffix != ".log"
        }

    def gc(self, prepare: Callable[[], object] = lambda: None) -> forked.Ended:
        def work() -> int:
            prepare()
            return cli.main(["gc", str(self.runs), "--yes"])

        return forked.run(work, self.folder / "gc.log")


def check(world: World, before: dict[str, bytes]) -> None:
    """Nothing is gone, or changed, but what nobody needs."""
    ours = tuple(f"runs/store/{name}/" for name in world.ours)
    after = world.files()
    lost = [name for name in before if before[name] != after.get(name)]
    assert all(name.startswith(ours) for name in lost), lost
    for name in world.campaigns:
        (place, *_) = [*world.runs.glob(f"{name}/plans/*"), world.runs]
        with contextlib.suppress(ValueError, OSError):  # it is damaged or behind a link
            assert seal.has_artifacts(record.read(PlanFolder(place)))


TRIALS = [*range(8), *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(8, 200))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", TRIALS)
def test_every_finished_campaign_keeps_what_it_needs(seed, tmp_path):
    rng = random.Random(seed)
    world = World(tmp_path, rng)
    world.rearrange()
    before, was_doubt = world.files(), world.doubt
    disturb = rng.choice([lambda *_: None, kill, start, arrive])
    disturb(world, rng.randint(1, 12))
    check(world, before)
    ended = world.gc()
    check(world, before)
    kept = {name for name in world.ours if (world.store / name).exists()}
    assert not was_doubt or kept == world.ours
    if world.doubt:
        assert ended.code == 2 or (ended.code == 0 and not kept)
    else:
        assert ended.code == 0 and not kept
        assert not list(world.store.glob(f"*/.*-{16 * '?'}.{8 * '?'}"))


def kill(world: World, step: int) -> None:
    world.gc(lambda: forked.before_change(world.runs, step, forked.die))


def start(world: World, step: int) -> None:
    """A campaign starts: it waits for `rib gc`, or holds the store and finds artefacts."""
    store, seen = Store(world.store), world.folder / "seen.log"

    class Waits(Exception):
        pass

    def wait() -> None:
        raise Waits

    def begin() -> None:
        with contextlib.suppress(Waits):
            held = locks.shared(store.root / artifacts.IN_USE, wait, store.files)
            until_the_end.enter_context(held)
            seen.write_text("\n".join(left(world.runs)))
            begun(world.runs, "starts")

    with contextlib.ExitStack() as until_the_end:
        world.gc(lambda: forked.before_change(world.runs, step, begin))
    if seen.exists():
        assert set(seen.read_text().split("\n")) <= {*left(world.runs), ""}
        world.doubt = True  # it is unfinished


def arrive(world: World, step: int) -> None:
    """A user moves a finished campaign into the folder, which asks no lock."""
    needed = set(world.some(sorted(world.ours - {f"cells/{LEFT_OVER}"})))
    seen = world.folder / "seen.log"
    finish(outside := begun(world.folder / "outside", "arrives"), sorted(needed))

    def move() -> None:
        seen.write_text("\n".join(needed & left(world.runs)))
        outside.place.campaign.rename(world.runs / "arrives")

    world.gc(lambda: forked.before_change(world.runs, step, move))
    if seen.exists():
        found = set(seen.read_text().split())
        assert len(found - left(world.runs)) < 2, "gc looks again before each folder"
        world.need(found & left(world.runs))
