"""`rib gc`: only what is provably the engine's own, and needed by nobody, is deleted."""

import contextlib
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import cli
from engine.store import artifacts, use
from engine.store.artifacts import MARKER, UNFINISHED, Store
from faults import forked
from helpers.runs_folders import artifact, begun, finish
from loaders.files import locks

FORK = multiprocessing.get_context("fork")
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


@pytest.fixture
def held(runs) -> tuple[str, str, str]:
    """A cell that a finished campaign may need, another one, and features."""
    a, b = (artifact(runs, "cells", name, 3000) for name in ("a", "b"))
    return a, b, artifact(runs, "features", "c", 500)


def test_what_no_finished_campaign_needs_goes(runs, held, gc):
    needed, alone, _ = held
    finish(begun(runs), [needed])
    shown = gc()
    assert f"{alone.partition('/')[2]}  3." in shown and "--yes deletes it" in shown
    assert left(runs) == {*held}
    assert "deleted 5." in gc("--yes") and left(runs) == {needed}
    assert "nothing was deleted" in gc("--yes")


def test_a_record_without_its_plan_counts(runs, gc):
    needed = artifact(runs, "cells", "a", 3000)
    finish(plan := begun(runs), [needed])
    plan.place.plan.unlink()
    assert "nothing was deleted" in gc("--yes") and left(runs) == {needed}


def _unfinished(runs: Path, _: Path) -> str:
    return f"other is unfinished: finish it, or delete its plan ({begun(runs, 'other').place.path})"


def _damaged(path: Path, remedy: str) -> str:
    path.write_bytes(b"{}")
    return f"{path} was altered; {remedy}run `rib campaign` again"


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
    "damaged plan": lambda runs, place: _damaged(place / "plan.json", ""),
    "damaged record": lambda runs, place: _damaged(place / "evaluations.json", "delete it and "),
    "linked record": lambda runs, place: _linked(runs, place / "evaluations.json"),
    "linked plan": lambda runs, place: _linked(runs, place),
    "linked plans": lambda runs, place: _linked(runs, place.parent),
    "linked campaign": lambda runs, place: _linked(runs, place.parents[1]),
    "group": _in_a_group,
    "unreadable": _unreadable,
}


@pytest.mark.parametrize("case", KEPT)
def test_while_a_campaign_may_need_more_everything_is_kept(case, runs, held, gc, monkeypatch):
    finish(plan := begun(runs), held[:1])
    reason = KEPT[case](runs, plan.place.path)
    if case == "unreadable":  # root, who runs tests in containers, reads all folders
        scandir = os.scandir

        def refuse(path):
            if path == plan.place.campaign:
                raise PermissionError(13, os.strerror(13), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
    assert reason in gc() and reason in gc("--yes", refused=True)
    assert left(runs) == {*held}


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


def test_what_unfinished_work_left_goes(runs, gc):
    """Checkpoints of a training that diverged, slices of predictions, and features."""
    finish(begun(runs), [])
    pending = runs / "store" / "pending"
    of_cell, slices, features = (f"{name}-0123456789abcdef" for name in ("ewc-few", "on", "few"))
    for name in (f"{of_cell}/step000000004-0123456789abcdef", slices, "of mine"):
        (pending / name).mkdir(parents=True)
        (pending / name / "x").write_bytes(bytes(2000))
    (pending / f"{features}.npy").write_bytes(bytes(2000))
    shown = gc()
    assert "pending: 3, 6 kB" in shown and f"{of_cell}  2 kB" in shown
    begun(runs, "other")
    assert "other is unfinished" in gc("--yes", refused=True)
    shutil.rmtree(runs / "other")
    assert "deleted 6 kB" in gc("--yes")
    assert [path.name for path in pending.iterdir()] == ["of mine"]


@pytest.fixture
def other(runs, tmp_path) -> Path:
    """Another runs folder, which the store of the first lists as if it were mounted there."""
    folder = tmp_path / "other"
    folder.mkdir()
    share(folder, runs)
    share(runs, runs)
    return folder


def share(folder: Path, runs: Path) -> None:
    """Do in a runs folder what a command there does to the store that it shares with `runs`."""
    if folder != runs:
        (runs / "store").rename(folder / "store") if (runs / "store").exists() else None
    with use.in_use(Store(folder / "store")):
        pass
    if folder != runs:
        (folder / "store").rename(runs / "store")


def listed(runs: Path) -> list[Path]:
    """The files of the runs folders that a store lists."""
    return sorted((runs / "store" / use.USED_BY).iterdir())


def file_of(folder: Path, runs: Path) -> Path:
    """That of one runs folder."""
    return runs / "store" / use.USED_BY / f"{(folder / use.ID).read_text()}.json"


def test_what_campaigns_in_another_folder_of_the_store_need_stays(runs, other, held, gc, capsys):
    finish(begun(runs), held[:1])
    plan = begun(other, "theirs")
    assert f"{plan.place.path}) is" not in gc()
    assert f"delete its plan ({plan.place.path})" in gc("--yes", refused=True)
    finish(plan, held[1:2])
    shown = gc("--yes")
    assert f"{other} shares the store" in shown and str(file_of(other, runs)) in shown
    assert left(runs) == {*held[:2]}
    assert cli.main(["status", str(runs)]) == 0
    assert f"for {other / 'theirs'}\n" in capsys.readouterr().out


def test_a_folder_of_the_store_that_cannot_be_read_is_named_until_its_file_is_deleted(
    runs, other, held, gc
):
    """As one on a disk that is not mounted, or on another machine that has the same path."""
    finish(begun(runs), held[:1])
    begun(other, "theirs")
    away = other.rename(other.with_name("away"))
    file = file_of(away, runs)
    reason = f"{other} on .* shares {runs / 'store'} and cannot be read here: .* delete {file}"
    for _ in range(2):
        assert re.search(reason, gc()) and re.search(reason, gc("--yes", refused=True))
        assert left(runs) == {*held}
        other.mkdir(exist_ok=True)
        (other / use.ID).write_text("0" * 32)
    file.write_text("{}")
    assert f"{file} is damaged" in gc("--yes", refused=True)
    file.unlink()
    gc("--yes")
    assert left(runs) == {held[0]}


def test_folders_that_moved_are_known(runs, other, held, gc, tmp_path):
    finish(begun(runs), held[:1])
    finish(begun(other, "theirs"), held[1:2])
    other = other.rename(tmp_path / "other here")
    assert "run one of its campaigns again if the folder moved" in gc("--yes", refused=True)
    (other / "store").mkdir()  # nothing is mounted there
    use.list_again(Store(other / "store"))
    assert not list((other / "store").iterdir())
    (other / "store").rmdir()
    (runs / "store").rename(other / "store")
    use.list_again(Store(other / "store"))
    (other / "store").rename(runs / "store")
    assert len(listed(runs)) == 2
    moved = runs.rename(tmp_path / "runs here")
    assert cli.main(["gc", str(moved), "--yes"]) == 0
    assert left(moved) == {*held[:2]}
    share(moved, moved)
    assert len(listed(moved)) == 2
    by_another_path = tmp_path / "linked"
    by_another_path.symlink_to(moved)
    assert cli.main(["gc", str(by_another_path), "--yes"]) == 0


@pytest.mark.parametrize("name", [b"\xff", "ä ö%20".encode(), b"\n"])
def test_any_path_can_be_listed(runs, held, gc, tmp_path, name):
    other = tmp_path / os.fsdecode(name)
    other.mkdir()
    share(other, runs)
    share(other, runs)
    finish(begun(runs), held[:1])
    finish(begun(other, "theirs"), held[1:2])
    gc("--yes")
    assert left(runs) == {*held[:2]} and len(listed(runs)) == 1
    listed(runs)[0].write_text('{"path": "/%00", "host": "x"}')
    assert "cannot be read here" in gc("--yes", refused=True)


def test_a_copy_is_another_folder(runs, held, gc, tmp_path, capsys):
    """With the store, its list names the original until the file is deleted; without, a command in
    the copy gives it an identifier of its own."""
    share(runs, runs)
    finish(begun(runs), held[:1])
    copy = shutil.copytree(runs, tmp_path / "copy")
    shutil.rmtree(copy / "emoji")
    finish(begun(copy, "theirs"), held[1:2])
    assert cli.main(["gc", str(copy), "--yes"]) == 0
    file = file_of(runs, copy)
    assert f"{runs} shares the store" in capsys.readouterr().out and left(copy) == {*held[:2]}
    share(copy, copy)
    assert len(listed(copy)) == 2
    file.unlink()
    assert cli.main(["gc", str(copy), "--yes"]) == 0 and left(copy) == {held[1]}
    shutil.rmtree(copy / "store")
    (copy / use.ID).write_bytes((runs / use.ID).read_bytes())
    share(copy, runs)
    assert len(listed(runs)) == 2
    gc("--yes")
    assert left(runs) == {*held[:2]}


def test_folders_that_begin_at_once_are_listed_once(runs):
    (runs / "store").mkdir()
    processes = [FORK.Process(target=share, args=(runs, runs)) for _ in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert listed(runs) == [file_of(runs, runs)]
    files = [runs / use.ID, *listed(runs)]
    written = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    share(runs, runs)
    assert written == [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]


def test_files_that_a_killed_report_left_go(runs, gc):
    finish(plan := begun(runs), [])
    plan.place.report.mkdir()
    plan.place.store.mkdir()
    left = [plan.place.report / ".table.txt.0a1b2c3d", plan.place.path / ".plan.json.0a1b2c3d"]
    for file in (*left, plan.place.report / ".accuracy.csv.0a1b2c3d", plan.place.report / "x"):
        file.write_bytes(bytes(500))
    for file in left:
        os.utime(file, (0, 0))
    assert "report: 1, 500 B" in gc() and "deleted 1 kB" in gc("--yes")
    assert {path.name for path in plan.place.report.iterdir()} == {".accuracy.csv.0a1b2c3d", "x"}
    assert not left[1].exists() and plan.place.plan.is_file()


def test_nothing_goes_while_a_command_uses_the_store(runs, gc):
    cell = artifact(runs, "cells", "a", 3000)
    finish(begun(runs), [])
    store = Store(runs / "store")
    with use.in_use(store), use.in_use(store):
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
    others = {artifacts.PENDING, use.USED_BY, "locks"}
    assert kinds <= artifacts.KINDS | others and "features" in kinds
    report = runs / "shapes" / "report"
    tables = {path: path.read_bytes() for path in report.glob("*.csv")}
    gc("--yes")
    assert not [*(runs / "store" / "features").iterdir()]
    for path in tables:
        path.unlink()
    assert cli.main(["report", str(runs / "shapes")]) == 0
    assert len(tables) > 3 and tables == {path: path.read_bytes() for path in report.glob("*.csv")}


def at_change(runs: Path, number: int, act: Callable[[], object]) -> None:
    """`rib gc --yes` in a process, which does `act` before it changes the folder for the n-th time.

    A number beyond its last change disturbs nothing.
    """

    def work() -> int:
        forked.before_change(runs, number, act)
        return cli.main(["gc", str(runs), "--yes"])

    forked.run(work, runs.with_name("gc.log"))


@pytest.fixture
def made(runs) -> list[str]:
    """Six artefacts, of which a finished campaign needs the first two, and a left-over."""
    kinds = ("cells", "predictions", "cells", "weights", "fisher", "predictions")
    made = [artifact(runs, kind, f"label{k}", 9) for k, kind in enumerate(kinds)]
    shutil.copytree(runs / "store" / made[2], runs / "store" / "cells" / LEFT_OVER)
    finish(begun(runs), made[:2])
    return made


STEPS = [*range(1, 6), *(pytest.param(k, marks=pytest.mark.exhaustive) for k in range(6, 13))]
at_each_step = pytest.mark.parametrize("step", STEPS)


@pytest.mark.slow
@at_each_step
def test_a_command_that_is_killed_took_nothing_that_is_needed(step, runs, made, gc):
    at_change(runs, step, forked.die)
    assert {*made[:2]} <= left(runs)
    gc("--yes")
    assert left(runs) == {*made[:2]}
    assert not list(runs.glob(f"store/*/.*-{16 * '?'}.{8 * '?'}"))


@pytest.mark.slow
@at_each_step
def test_a_campaign_that_starts_meanwhile_waits_or_keeps_what_it_finds(step, runs, made):
    store, seen = Store(runs / "store"), runs.with_name("seen.log")

    class Waits(Exception):
        pass

    def wait() -> None:
        raise Waits

    def begin() -> None:
        with contextlib.suppress(Waits):
            held = locks.shared(store.root / use.IN_USE, wait, store.files)
            until_the_end.enter_context(held)
            seen.write_text("\n".join(left(runs)))
            begun(runs, "starts")

    with contextlib.ExitStack() as until_the_end:
        at_change(runs, step, begin)
    found = seen.read_text().split("\n") if seen.exists() else made[:2]
    assert {*found} <= left(runs)


@pytest.mark.slow
@at_each_step
def test_a_finished_campaign_that_is_moved_in_meanwhile_loses_one_artefact_at_most(
    step, runs, made, tmp_path
):
    """Who moves a folder asks no lock; gc looks again before each folder."""
    seen = tmp_path / "seen.log"
    finish(outside := begun(tmp_path / "outside", "arrives"), made[2:])

    def move() -> None:
        seen.write_text("\n".join(left(runs)))
        outside.place.campaign.rename(runs / "arrives")

    at_change(runs, step, move)
    found = {*seen.read_text().split("\n")} if seen.exists() else {*made[:2]}
    assert {*made[:2]} <= left(runs) and len(found & {*made} - left(runs)) < 2


@pytest.mark.parametrize(
    "inside", ["", "plans/0123/logs", "plans/0123/.plan.json.0a1b2c3d", "report"]
)
def test_a_folder_without_a_plan_may_be_a_campaign_on_a_disk_that_is_not_mounted(
    runs, held, gc, inside
):
    finish(begun(runs), [held[0]])
    (runs / "elsewhere" / inside).mkdir(parents=True)
    assert "elsewhere" in gc("--yes", refused=True) and left(runs) == {*held}
    shutil.rmtree(runs / "elsewhere")
    for other in ("tensorboard/emoji", "emoji-models-0a1b2c3d/report", "packs"):
        (runs / other).mkdir(parents=True)
    gc("--yes")
    assert left(runs) == {held[0]}
