"""Campaigns are planned before they run: mistakes are named, and nothing is written."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import campaigns
import pytest

from engine import cli, recipe
from engine.data import packs
from engine.errors import CampaignError, RecipeError
from engine.grid import campaign, outcomes, workflow
from loaders.pack import MANIFEST
from loaders.schema import DamagedFile

folder = campaigns.folder


def planned(folder: Path, *words: str, cores: int = 2) -> campaign.Plan:
    return campaign.plan(str(folder / "shapes.yaml"), words, cores)


def test_grids_of_two_models_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    model, renamed = str(folder / "model.yaml"), tmp_path / "other.yaml"
    renamed.write_text(Path(model).read_text().replace("name: tiny", "name: other"))
    for words, name in (
        ((), "shapes"),
        ((f"model={model}",), "shapes"),
        ((f"model={renamed}",), "shapes-other"),
    ):
        assert planned(folder, f"runs={tmp_path}", *words).folder == tmp_path / name


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the grids that would have run; from then on they count as finished."""
    names: list[str] = []

    def run(plans: list[campaign.Plan], *_: object, **__: object) -> None:
        names.extend(plan.folder.name for plan in plans)

    monkeypatch.setattr(workflow, "run", run)
    monkeypatch.setattr(outcomes, "finished", lambda plan: plan.folder.name in names)
    monkeypatch.setattr("engine.commands.campaign.show", lambda plan: None)
    monkeypatch.setattr("engine.commands.campaign._merged", lambda *_: None)
    return names


def test_folders_that_are_missing_are_named_before_anything_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, ran: list[str]
) -> None:
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


@pytest.mark.slow
def test_sets_that_are_not_encoded_are_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture, ran: list[str]
) -> None:
    words = ["campaign", "imagenet_rib_paper", "model=all", "dataset.subsample=100"]
    words += [f"runs={tmp_path / 'my runs'}", "model.weights.tag=x"]
    assert cli.main(words) == 2 and not ran
    lines = [line for line in capsys.readouterr().err.splitlines() if "rib encode" in line]
    assert len(lines) == 3, "of seven models three transforms"
    assert cli.main([*words, "--dry-run"]) == 2 and len(ran) == 7
    assert "\n".join(lines) in capsys.readouterr().err
    ran.clear()
    for line in lines:  # a pack where each of these commands puts it
        command, _, names = line.rstrip(")").partition("   (SET: ")
        *words_before, model = shlex.split(command)[:7]
        assert words_before == ["rib", "encode", "SET", "--source", "FOLDER", "--model"]
        encoded = recipe.of_sections(model, "imagenet_rib", shlex.split(command)[7:])
        assert len(names.split(", ")) == 9, "with the upstream set"
        for name in names.split(", "):
            place = packs.pack_folder(Path(encoded.runs), encoded.dataset, encoded.model, name)
            place.mkdir(parents=True)
            (place / MANIFEST).touch()
    assert cli.main(words) == 0 and len(ran) == 7


@pytest.mark.slow
def test_a_set_below_the_root_need_not_be_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture, ran: list[str]
) -> None:
    words = ["campaign", "imagenet_rib", f"runs={tmp_path}", f"dataset.root={tmp_path / 'in'}"]
    for name in ("imagenet_val", *recipe.load("imagenet_rib").dataset.sets[1:]):
        (tmp_path / "in" / name).mkdir(parents=True)
    assert cli.main(words) == 2 and not ran
    errors = capsys.readouterr().err
    assert errors.count("rib encode") == errors.count("(SET: imagenet_v2)") == 1
    (tmp_path / "in" / "imagenet_v2").mkdir()
    assert cli.main(words) == 0 and ran
    assert cli.main([*words, "dataset.subsample=full"]) == 2, "all of IN-C is made on request only"
    errors = capsys.readouterr().err
    assert errors.count("rib encode") == 1 and "imagenet_c" in errors and "subsample=full" in errors


def test_the_model_of_a_campaign_file_stands_in_the_command_to_encode(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "mine.yaml"
    model.write_text((recipe.ROOT / "models" / "resnet18.yaml").read_text())
    inline = "{name: own, arch: resnet18, weights: {source: random}}"
    for setting, printed in ((str(model), str(model)), ("resnet34", "resnet34"), (inline, "MODEL")):
        file = tmp_path / "own.yaml"
        file.write_text(
            f"model: {setting}\ndataset: imagenet_rib\ndownstream: imagenet_a\n"
            "methods: {fine_tune: {}}\n"
        )
        words = [f"runs={tmp_path / 'runs'}", "dataset.sets=[imagenet_a,imagenet_r]"]
        assert cli.main(["campaign", str(file), *words]) == 2
        commands = [line for line in capsys.readouterr().err.splitlines() if "rib encode" in line]
        (command,) = commands
        assert f"--model {printed} " in command
        assert "SET: imagenet_val, imagenet_a, imagenet_r" in command


def test_words_of_the_benchmarks_header_agree_on_the_packs() -> None:
    header = (recipe.ROOT / "campaigns" / "imagenet_rib.yaml").read_text()
    commands = re.findall(r"^#   rib (\w+) (.*?)(?:   .*)?$", header, re.MULTILINE)
    assert [command for command, _ in commands] == [
        "download",
        "encode",
        "verify",
        "plan",
        "campaign",
    ]
    name = "vit_b16_clip_openai"
    places = []
    for _, text in commands:
        words = [w.replace("MODEL", name) for w in text.split() if "=" in w and "model=" not in w]
        encoded = recipe.of_sections(name, "imagenet_rib", words)
        in_grid = recipe.load("imagenet_rib", [f"model={name}", *words])
        places += [
            packs.pack_folder(Path(resolved.runs), resolved.dataset, resolved.model, "imagenet_v2")
            for resolved in (encoded, in_grid)
        ]
    assert len(set(places)) == 1
    plan = campaign.plan("imagenet_rib", [f"model={name}"], 1)
    assert plan.folder == Path("runs") / f"imagenet_rib-{name}"


def test_a_part_of_the_methods(folder: Path, tmp_path: Path) -> None:
    """In the table's order, with the siblings that they are made of; a campaign of its own."""
    whole, words = planned(folder, f"runs={tmp_path}"), (f"runs={tmp_path}", "methods=[wise_ft]")
    part = planned(folder, *words)
    assert part.methods == ("wise_ft",) and part.path != whole.path
    turned = planned(folder, f"runs={tmp_path}", "methods=[linear_probe,fine_tune]")
    assert turned.methods == ("fine_tune", "linear_probe")
    name = str(folder / "shapes.yaml")
    assert recipe.load(name, words).method.name == "wise_ft"
    probe = recipe.load(name, words, method="linear_probe")
    assert probe.train.epochs == 2, "a sibling has the campaign's settings"


def test_a_folder_spelled_otherwise_is_the_same_campaign(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(folder / "shapes.yaml")
    by_name = [campaign.plan(file, [f"runs={runs}"], 1) for runs in ("r", tmp_path / "r", "./r/")]
    assert len({plan.path for plan in by_name}) == 1
    monkeypatch.chdir(folder)
    assert campaign.plan("shapes.yaml", [f"runs={tmp_path / 'r'}"], 1).path == by_name[0].path


def test_a_users_method_lies_beside_its_yaml(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any working directory, and the same campaign wherever both lie."""
    plans = []
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        (place / "mine.py").write_text("from engine.methods.fine_tune import Method, Recipe\n")
        section = "{method: {name: mine, title: Mine, module: mine.py}}"
        text = (
            (folder / "shapes.yaml").read_text().replace("fine_tune: {}", f"fine_tune: {section}")
        )
        (place / "shapes.yaml").write_text(text)
        plans.append(campaign.plan(str(place / "shapes.yaml"), [f"runs={tmp_path}"], 1))
    assert plans[0].path == plans[1].path


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 1), (8, 2)])
def test_threads_of_a_column_share_the_cores(folder: Path, cores: int, threads: int) -> None:
    assert planned(folder, cores=cores).threads == threads
    assert planned(folder, "threads=4", cores=cores).threads == 4


def test_plans_place_is_named_after_what_determines_the_results(
    folder: Path, tmp_path: Path
) -> None:
    runs = f"runs={tmp_path}"
    places = [
        planned(folder, runs).path,
        planned(folder, runs, cores=8).path,  # changes nothing
        planned(folder, runs, "train.checkpoint_minutes=0", "trackers=[wandb]").path,  # nor these
        planned(folder, runs, "seed=1").path,
        planned(folder, runs, "model.head.l2=0.02").path,
        planned(folder, runs, "dataset.sets=[outline,tinted]").path,
    ]
    assert places[0] == places[1] == places[2] and len(set(places)) == 4
    assert all(place.is_absolute() for place in places)


def test_plan_knows_the_content_of_a_users_method(folder: Path, tmp_path: Path) -> None:
    module = tmp_path / "own.py"
    module.write_text("from engine.methods.fine_tune import Method, Recipe\n")
    (tmp_path / "own.yaml").write_text(f"name: own\ntitle: Own\nmodule: {module}\n")
    text = (
        (folder / "shapes.yaml").read_text().replace("fine_tune: {}", f"{tmp_path}/own.yaml: {{}}")
    )
    (tmp_path / "shapes.yaml").write_text(text)
    before = planned(tmp_path).path
    module.write_text(module.read_text() + "# changed\n")
    assert planned(tmp_path).path != before


def test_plan_on_disk_is_read_back(folder: Path, tmp_path: Path) -> None:
    """With typed settings and all recipes, whatever becomes of the files that it was made of."""
    for name in ("shapes.yaml", "model.yaml", "data.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    words = ("vary={optimizer.lr: [1e-5, 1], seed: [3]}", "trackers=[wandb]")
    plan = planned(tmp_path, f"runs={tmp_path / 'runs'}", *words)
    plan.path.parent.mkdir(parents=True)
    plan.path.write_bytes(campaign.text(plan))
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    again = campaign.read(plan.path)
    assert campaign.text(again) == plan.path.read_bytes()
    assert (again.columns, again.path, again.threads) == (plan.columns, plan.path, plan.threads)
    first, second, *_ = again.columns
    assert (first.settings, first.varied) == (
        {"optimizer.lr": 1e-5, "seed": 3},
        {"optimizer.lr": 1e-5},
    )
    assert isinstance(second.settings["optimizer.lr"], float)
    for before, after in zip(plan.cells(second), again.cells(second), strict=True):
        assert dataclasses.asdict(before.recipe) == dataclasses.asdict(after.recipe)
        assert before.recipe.optimizer.lr == 1 and before.recipe.seed == 3
        assert before.needs.keys() == after.needs.keys()
    plan.path.write_bytes(plan.path.read_bytes().replace(b"outline", b"tinted"))
    with pytest.raises(DamagedFile, match=r"plan\.json was altered; run `rib campaign` again"):
        campaign.read(plan.path)
    with pytest.raises(FileNotFoundError, match=r"plan\.json is missing; run `rib campaign` again"):
        campaign.read(tmp_path / "plan.json")


def test_a_needed_method_is_part_of_the_plan(folder: Path, tmp_path: Path) -> None:
    """In the row's variant and setting, without the row's options."""
    words = [f"runs={tmp_path}", "methods=[wise_ft]", "method.alphas=[0.5]", "method.variant=paper"]
    file = tmp_path / "mine.yaml"
    paths = set()
    for rate in (0.02, 0.03):
        text = (folder / "shapes.yaml").read_text()
        changed = f"fine_tune: {{optimizer: {{lr: {rate}}}}}"
        file.write_text(text.replace("fine_tune: {}", changed))
        plan = campaign.plan(str(file), words)
        paths.add(plan.path)
        (cell,) = plan.cells(plan.columns[1])
        (needed,) = cell.needs.values()
        assert needed.recipe.optimizer.lr == rate and needed.recipe.downstream == "tinted"
        assert needed.recipe.method.variant == "paper"
        assert not hasattr(needed.recipe.method, "alphas")
    assert len(paths) == 2


def test_a_users_method_that_changed_after_planning_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    module = tmp_path / "mine.py"
    module.write_text("raise SystemExit('it was imported')\n")
    module.write_text(
        "from engine.methods.fine_tune import Method, Recipe\nraise SystemExit('it was imported')\n"
    )
    text = (folder / "shapes.yaml").read_text()
    section = f"{{method: {{name: mine, title: Mine, module: {module}}}}}"
    (tmp_path / "shapes.yaml").write_text(text.replace("fine_tune: {}", f"fine_tune: {section}"))
    plan = planned(tmp_path, f"runs={tmp_path}")
    plan.path.parent.mkdir(parents=True)
    plan.path.write_bytes(campaign.text(plan))
    plan = campaign.read(plan.path)  # which does not run the file
    campaign.check_modules(plan)
    module.write_text(module.read_text() + "# changed\n")
    with pytest.raises(
        CampaignError, match=r"mine\.py is not as it was when the campaign was planned"
    ):
        campaign.check_modules(plan)


def test_other_words_have_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    """So that they leave the plain campaign's report alone."""
    plain = planned(folder, f"runs={tmp_path}", "trackers=[wandb]", "device=cpu").folder
    assert plain == tmp_path / "shapes"
    folders = {
        planned(folder, f"runs={tmp_path}", *words).folder
        for words in (["seeds=5"], ["methods=[wise_ft]"], ["methods=[wise_ft]", "seeds=5"])
    }
    assert len(folders) == 3 and all(f.name.startswith("shapes-") for f in folders)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epoch=1"], "unknown key 'train.epoch'; did you mean 'train.epochs'"),
        (["downstream=outline"], r"trains on all its sets; choose them by dataset\.sets="),
        (["method.alpha=0.3"], "'method.alpha=0.3': a campaign trains several methods"),
        (["method=fine_tune"], r"several methods; choose them by methods=\[A,B\]"),
        (["methods.wise_ft.alpha=0.3"], "a campaign trains several methods"),
        (["methods=[fine_tunes]"], "'fine_tunes' is no method of .*; did you mean 'fine_tune'"),
        (
            ["methods=fine_tune"],
            r"names no methods of .*; write methods=\[fine_tune,linear_probe\]",
        ),
        (["methods=[]"], "names no methods"),
        (["dataset.sets=[outline]"], "needs two sets or more"),
        (["dataset.sets=[outline,outline]"], "names outline twice"),
        (["evaluate.split=all"], r"set evaluate\.split=holdout, or dataset\.holdout=0"),
    ],
)
def test_mistake_is_found_before_any_work(
    folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(folder, f"runs={tmp_path / 'runs'}", *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("  soup: {method: {members: [pre, fine_tunes]}}", "did you mean 'fine_tune'"),
        ("  soup: {method: {members: [pre, wise_ft]}}", "soup needs wise_ft, which mixes cells"),
        (
            "  greedy_soup: {dataset: {holdout: 0}}",
            "chosen on a downstream hold-out",
        ),
    ],
)
def test_a_soup_that_cannot_be_is_found_before_any_work(
    folder: Path, tmp_path: Path, methods: str, message: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"{(folder / 'shapes.yaml').read_text()}{methods}\n")
    with pytest.raises(RecipeError, match=message):
        campaign.plan(str(file), [f"runs={tmp_path / 'runs'}"], 2)
    assert not (tmp_path / "runs").exists()


def test_unknown_campaign_cores_and_words(capsys: pytest.CaptureFixture, folder: Path) -> None:
    for words, message in (
        (["campaign", "emojis"], "there is no campaign 'emojis'; did you mean 'emoji'?"),
        (["campaign", "emoji", "--cores", "0"], "--cores 0: at least one is needed"),
        (["campaign", str(folder / "data.yaml")], "is no campaign; it needs `methods:`"),
        (["metrics", str(folder / "shapes.yaml"), "runs=/nowhere"], "holds no finished run of"),
    ):
        assert cli.main(words) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and message in shown and shown.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        cli.main(["campaign", "emoji", "--core"])
    assert caught.value.code == 2


def test_recipes_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "emoji" in shown and "efficientnet_lite0" in shown and "wise_ft" in shown
