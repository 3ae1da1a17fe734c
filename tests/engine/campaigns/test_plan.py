"""Campaigns are planned before they run: their columns, and mistakes, which are named."""

import itertools
import os
import shlex
import shutil
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns import seal, workflow
from engine.campaigns.plan import Column, Plan, check_modules, plan_to_json, read_plan
from engine.campaigns.plan_folder import PlanFolder
from engine.data import packs
from engine.errors import CampaignError
from engine.recipe.catalogue import ROOT
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe, recipe_of_sections
from helpers import campaigns
from helpers.campaigns import plan_of
from loaders.files.typed_json import DamagedFile
from loaders.pack import MANIFEST

VARY = "{optimizer.lr: [0.02, 1e-5], train.epochs: [1, 2]}"


def planned(folder: Path, *words: str, cores: int = 2) -> Plan:
    return plan_of(folder / "shapes.yaml", *words, cores=cores)


def of_text(folder: Path, tmp_path: Path, text: str, *words: str) -> Plan:
    """The plan of the campaign with more lines in its file."""
    file = tmp_path / "of_text.yaml"
    file.write_text((folder / "shapes.yaml").read_text() + text)
    return plan_of(file, f"runs={tmp_path / 'runs'}", *words)


def test_a_campaign_is_named_after_what_determines_its_results(folder, tmp_path, monkeypatch):
    """In a folder that leaves the plain campaign's report alone where its words are others."""
    model, renamed = folder / "model.yaml", tmp_path / "other.yaml"
    renamed.write_text(model.read_text().replace("name: tiny", "name: other"))
    monkeypatch.chdir(tmp_path)
    plain = planned(folder, f"runs={tmp_path / 'r'}")
    assert plain.place.campaign == tmp_path / "r" / "shapes"
    for words in (
        ["runs=r"], ["runs=./r/"], [f"model={model}"], ["device=cpu", "trackers=[wandb]"],
        ["train.checkpoint_minutes=0"],
    ):  # fmt: skip
        same = planned(folder, f"runs={tmp_path / 'r'}", *words, cores=8)
        assert same.place == plain.place, words
    others = [
        planned(folder, f"runs={tmp_path / 'r'}", *words)
        for words in (
            [f"model={renamed}"], ["seed=1"], ["seeds=5"], ["model.head.l2=0.02"],
            ["dataset.sets=[outline,tinted]"], ["methods=[wise_ft]"],
        )
    ]  # fmt: skip
    assert others[0].place.campaign.name == "shapes-other"
    assert all(plan.place.campaign.name.startswith("shapes-") for plan in others)
    assert len({plan.place.campaign for plan in others}) == len(others)
    assert len({plan.place.name for plan in others}) == len(others)
    monkeypatch.chdir(folder)
    assert plan_of("shapes.yaml", f"runs={tmp_path / 'r'}").place == plain.place


def test_threads_of_a_column_share_the_cores(folder):
    for cores, threads in ((1, 1), (2, 1), (3, 1), (8, 2)):
        assert planned(folder, cores=cores).threads == threads
        assert planned(folder, "threads=4", cores=cores).threads == 4


def test_a_users_method_is_a_part_of_its_campaign(folder, tmp_path):
    """By its content, wherever it lies."""
    text, plans = (folder / "shapes.yaml").read_text(), []
    section = "{method: {name: mine, title: Mine, module: mine.py}}"
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        (place / "mine.py").write_text("")
        (place / "shapes.yaml").write_text(text.replace("fine_tune: {}", f"fine_tune: {section}"))
        plans.append(planned(place, f"runs={tmp_path}"))
    assert plans[0].place == plans[1].place
    check_modules(plans[1])
    (tmp_path / "b" / "mine.py").write_text("# a comment\n")
    assert planned(tmp_path / "b", f"runs={tmp_path}").place == plans[1].place
    check_modules(plans[1])
    (tmp_path / "b" / "mine.py").write_text("changed = True\n")
    assert planned(tmp_path / "b", f"runs={tmp_path}").place != plans[1].place
    with pytest.raises(CampaignError, match=r"mine\.py changed since the campaign was pl"):
        check_modules(plans[1])


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Names of the grids that would have run; from then on they count as finished."""
    names: list[str] = []

    def run(plans: list[Plan], *_: object, **__: object) -> None:
        names.extend(plan.place.campaign.name for plan in plans)

    monkeypatch.setattr(workflow, "run", run)
    monkeypatch.setattr(seal, "finished", lambda plan: plan.place.campaign.name in names)
    monkeypatch.setattr("engine.commands.campaign.show", lambda plan: None)
    monkeypatch.setattr("engine.commands.campaign._merged", lambda *_: None)
    return names


def test_folders_that_are_missing_are_named_before_anything_runs(folder, tmp_path, capsys, ran):
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "upstream")
    (tmp_path / "images" / "few" / "new").mkdir()
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={tmp_path / 'runs'}"]
    words.append(f"dataset.root={tmp_path / 'images'}")
    for options, grids in (([], 0), (["--dry-run"], 1)):
        assert cli.main([*words, *options]) == 2 and len(ran) == grids
        message = capsys.readouterr().err
        assert f"{tmp_path / 'images' / 'upstream'} is not a folder" in message
        assert "few has classes without images: new" in message


ALL = {"upstream", "twemoji", "noto-v1", "openmoji"}


@pytest.mark.parametrize(
    ("lines", "words", "part"),
    [
        ("", [], ALL),
        ("downstreams: [noto-v1]", [], {"upstream", "noto-v1"}),
        ("downstreams: [[noto-v1, twemoji]]", [], ALL - {"openmoji"}),
        ("", ["dataset.test_only=[openmoji]"], ALL - {"openmoji"}),
        ("downstreams: leave_one_out", [], ALL),
        ("downstreams: leave_one_out", ["dataset.upstream=null"], {"noto-v1", "openmoji"}),
        ("downstreams: [noto-v1]", ["dataset.holdout=0"], set()),
        ("downstreams: [noto-v1]", ["evaluate.split=holdout"], ALL),
        ("", ["downstreams=[noto-v1]"], ALL),  # a column of the campaign, as with the others
        # A photo that is held out of one dataset is in others.
        ("downstreams: [noto-v1]", ["dataset.holdout_by=source"], ALL),
    ],
)
def test_all_images_of_a_dataset_that_no_compared_model_trains_on_are_scored(
    tmp_path, lines, words, part
):
    """In a campaign that extends the demo, and in a cell of it that is trained alone."""
    file = tmp_path / "own.yaml"
    sets = "dataset: {extends: emoji, sets: [twemoji, noto-v1, openmoji]}"
    file.write_text(f"extends: emoji\n{sets}\nmethods: [fine_tune]\n{lines}")
    cell = plan_of(file, *words).recipes[0][0][0]
    of_cell = [word for word in words if not word.startswith("downstreams=")]
    alone = load_recipe(str(file), parsed([*of_cell, f"downstream={cell.downstream}"]))
    for recipe in (cell, alone):
        names = recipe.dataset.evaluated_sets
        assert {name for name in names if recipe.split_of(name) == "holdout"} == part


def test_a_fault_that_all_datasets_have_is_said_once(folder, tmp_path, capsys):
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).touch()
    files = f"{{train: {tmp_path}/train.txt, val: {tmp_path}/val.txt}}"
    dataset = tmp_path / "data.yaml"
    dataset.write_text((folder / "data.yaml").read_text() + f"split: {{files: {files}}}\n")
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={tmp_path}", f"dataset={dataset}"]
    assert cli.main([*words, "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert message.count("does not list") == 1
    assert "(in the same way: outline, tinted, few)" in message
    (tmp_path / "val.txt").unlink()
    assert cli.main([*words, "--dry-run"]) == 2
    assert f"there is no file {tmp_path}/val.txt: correct its path" in capsys.readouterr().err


@pytest.mark.parametrize("make", [os.symlink, shutil.copyfile])
def test_a_column_that_trains_on_images_of_ris_datasets_is_refused(
    folder, tmp_path, capsys, ran, make
):
    """RI would average over datasets that the column's models trained on."""
    images = shutil.copytree(folder / "images", tmp_path / "images")
    for name in ("outline", "tinted"):
        for file in (images / name).glob("*/*.png"):
            place = images / "union" / file.parent.name / f"{name}_{file.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            make(file, place)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={tmp_path}", f"dataset.root={images}"]
    words += ["dataset.train_sets=[union]", "--dry-run", "downstreams=[few,union]"]
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert "union contains images of outline, tinted, so RI would average over" in message
    assert (
        "leave outline, tinted out of dataset.sets, or train on union with `rib train`" in message
    )
    shutil.rmtree(images / "union")
    shutil.copytree(images / "upstream", images / "union")
    assert cli.main(words) == 0, "the upstream set is not in RI"


@pytest.mark.slow
def test_sets_that_are_not_encoded_are_named_before_anything_runs(tmp_path, capsys, ran):
    words = ["campaign", "imagenet_rib_released", "model=all", "dataset.subsample=100"]
    words += [f"runs={tmp_path / 'my runs'}", "model.weights.tag=x", "train.warmup_steps=0"]
    assert cli.main(words) == 2 and not ran
    lines = [line for line in capsys.readouterr().err.splitlines() if "rib encode" in line]
    assert len(lines) == 3, "of seven models three transforms"
    assert cli.main([*words, "--dry-run"]) == 2 and len(ran) == 7
    assert "\n".join(lines) in capsys.readouterr().err
    ran.clear()
    for line in lines:  # a pack where each of these commands puts it
        command, _, names = line.rstrip(")").partition("   (SET: ")
        *words_before, model = shlex.split(command)[:7]
        assert words_before == ["rib", "encode", "SET", "--images", "FOLDER", "--model"]
        encoded = recipe_of_sections(model, "imagenet_rib", parsed(shlex.split(command)[7:]))
        assert len(names.split(", ")) == 9, "with the upstream set"
        for name in names.split(", "):
            place = packs.pack_folder(encoded, name)
            place.mkdir(parents=True)
            (place / MANIFEST).touch()
    assert cli.main(words) == 0 and len(ran) == 7


def test_trainings_shorter_than_their_warm_up_are_one_fault(folder, capsys):
    words = [f"runs={folder / 'none'}", "train.warmup_steps=99", "--dry-run"]
    assert cli.main(["campaign", str(folder / "shapes.yaml"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("train.warmup_steps=99, but training has") == 2, "of 26 and of 16 images"
    assert "error: FT on outline (at most 31 images) and 1 more: " in error


@pytest.mark.slow
def test_a_set_below_the_root_need_not_be_encoded(tmp_path, capsys, ran):
    words = ["campaign", "imagenet_rib", f"runs={tmp_path}", f"dataset.root={tmp_path / 'in'}"]
    for name in ("imagenet_val", *load_recipe("imagenet_rib").dataset.sets[1:]):
        (tmp_path / "in" / name).mkdir(parents=True)
    assert cli.main(words) == 2 and not ran
    errors = capsys.readouterr().err
    assert errors.count("rib encode") == errors.count("(SET: imagenet_v2)") == 1
    (tmp_path / "in" / "imagenet_v2").mkdir()
    assert cli.main(words) == 0 and ran
    assert cli.main([*words, "dataset.subsample=full"]) == 2, "all of IN-C is made on request only"
    errors = capsys.readouterr().err
    assert errors.count("rib encode") == 1 and "imagenet_c" in errors and "subsample=full" in errors


@pytest.mark.parametrize(
    ("model", "printed"),
    [
        ("mine.yaml", "mine.yaml"),
        ("{name: own, arch: resnet18, weights: {source: random}}", "MODEL"),
    ],
)
def test_the_model_of_a_campaign_file_stands_in_the_command_to_encode(
    tmp_path, monkeypatch, capsys, model, printed
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models" / "resnet18.yaml", "mine.yaml")
    text = "dataset: imagenet_rib\ndownstream: imagenet_a\nmethods: {fine_tune: {}}\n"
    Path("own.yaml").write_text(f"model: {model}\n{text}", encoding="utf-8")
    assert cli.main(["campaign", "own.yaml", "dataset.sets=[imagenet_a,imagenet_r]"]) == 2
    (command,) = [each for each in capsys.readouterr().err.splitlines() if "rib encode" in each]
    assert f"--model {printed} " in command
    assert "SET: imagenet_val, imagenet_a, imagenet_r" in command


def test_plan_on_disk_is_read_back(folder, tmp_path):
    """With typed settings and all recipes, whatever becomes of the files that it was made of."""
    for name in ("shapes.yaml", "model.yaml", "data.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    words = ("param_grid={optimizer.lr: [1e-5, 1], seed: [3]}", "trackers=[wandb]")
    plan = campaigns.planned(tmp_path, f"runs={tmp_path / 'runs'}", *words)
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    again = read_plan(plan.place)
    assert plan_to_json(again) == plan.place.plan.read_bytes() and again.place == plan.place
    first, second, *_ = again.columns
    assert first.settings == {"optimizer.lr": 1e-5, "seed": 3}
    assert first.setting == {"optimizer.lr": 1e-5}
    assert isinstance(second.settings["optimizer.lr"], float)
    cells = [cell.recipe for cell in again.cells(second)]
    assert all(cell.optimizer.lr == 1 and cell.seed == 3 for cell in cells)
    assert cells == [cell.recipe for cell in plan.cells(second)]
    plan.place.plan.write_bytes(plan.place.plan.read_bytes().replace(b"outline", b"tinted"))
    with pytest.raises(DamagedFile, match=r"plan\.json was altered; run `rib campaign` again"):
        read_plan(plan.place)
    with pytest.raises(FileNotFoundError, match=r"plan\.json is missing; run `rib campaign` again"):
        read_plan(PlanFolder(tmp_path))


def test_a_needed_method_is_part_of_the_plan(folder, tmp_path):
    """In the row's variant and setting, without the row's options."""
    words = [
        f"runs={tmp_path}",
        "methods=[wise_ft]",
        "method.alphas=[0.5]",
        "method.variant=released",
    ]
    file, paths = tmp_path / "mine.yaml", set()
    for rate in (0.02, 0.03):
        changed = f"fine_tune: {{optimizer: {{lr: {rate}}}}}"
        file.write_text((folder / "shapes.yaml").read_text().replace("fine_tune: {}", changed))
        plan = plan_of(file, *words)
        paths.add(plan.place)
        (cell,) = plan.cells(plan.columns[1])
        needed = cell.needs["fine_tune"].recipe
        assert needed.optimizer.lr == rate and needed.downstream == "tinted"
        assert needed.method.variant == "released" and not hasattr(needed.method, "alphas")
    assert len(paths) == 2
    other = cell.on("few", {"method.variant": "original", "method.alphas": [0.1], "seed": 7})
    needed = other.needs["fine_tune"].recipe
    assert (needed.method.variant, needed.seed, needed.downstream) == ("original", 7, "few")
    assert other.recipe.method.alphas == [0.1]


def test_objectnet_is_fine_tuned_on_only_with_leave():
    """It is evaluated in any case; the campaigns of the benchmark have seven columns without it."""
    words, opened = ("methods=[fine_tune]",), "dataset.test_only=[]"
    sets = load_recipe("imagenet_rib").dataset.sets
    for name in ("imagenet_rib", "imagenet_rib_released"):
        plan = plan_of(name, *words)
        assert plan.sets == tuple(sets) and "objectnet" in sets
        assert plan.downstreams == [name for name in sets if name != "objectnet"]
        eight = plan_of(name, *words, opened)
        assert eight.downstreams == sets and eight.place != plan.place
    few = plan_of("imagenet_rib", *words, opened, "downstreams=[objectnet,imagenet_a]")
    assert few.downstreams[0] == "objectnet"
    cell = load_recipe("imagenet_rib/fine_tune", parsed(["downstream=objectnet", opened]))
    assert cell.downstream == "objectnet"


def test_columns_are_the_downstreams_in_every_setting(folder, tmp_path):
    plan = of_text(folder, tmp_path, f"param_grid: {VARY}\ndownstreams: [few, upstream]\n")
    places = itertools.product(("few", "upstream"), (0.02, 1e-5), (1, 2))
    expected = [(name, {"optimizer.lr": lr, "train.epochs": e}) for name, lr, e in places]
    assert [(column.downstream, column.settings) for column in plan.columns] == expected
    assert str(plan.columns[2].setting) == "optimizer.lr=1e-05,train.epochs=1"
    assert plan.columns[0].name == "few,optimizer.lr=0.02,train.epochs=1"
    assert plan.sets == campaigns.SETS and plan.downstreams == ["few", "upstream"]
    for column in plan.columns:
        cell = next(plan.cells(column)).recipe
        assert cell.downstream == column.downstream
        assert [*column.settings.values()] == [cell.optimizer.lr, cell.train.epochs]
    by_words = of_text(folder, tmp_path, "", f"param_grid={VARY}", "downstreams=[few]")
    assert by_words.columns == plan.columns[:4], "the command line says the same"
    plain = of_text(folder, tmp_path, "")
    assert plain.columns == tuple(Column(name) for name in campaigns.SETS)
    assert len({plan.place, by_words.place, plain.place}) == 3
