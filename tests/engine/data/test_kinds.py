"""A dataset has a recipe of its own: another kind, root, options, columns and a published split."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from engine import cli
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import PREPARE
from engine.cells.build import Builder
from engine.cells.cell_plan import CellPlan
from engine.cells.plan_cell import plan_cell
from engine.cells.users_kinds import encode_apart
from engine.cost import work
from engine.data import masks, packs
from engine.data.kinds import kind_of
from engine.data.sets import LabelledSet, Sets
from engine.errors import RecipeError
from engine.evaluation import passes
from engine.measures import predictions
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe, recipe_of_sections
from engine.recipe.schema import Recipe
from engine.recipe.typed import dump_recipe
from engine.store.cells import Cell
from helpers import campaigns, grids

CPU = torch.device("cpu")
BENCHMARK = """\
name: mixed
root: images
upstream: upstream
sets: [outline, tinted, few]
per_dataset:
  tinted:
    kind: table
    root: images/tinted
    table: ../tinted.csv
    columns: [region]
    parts: [region]
    split: {column: part, train: [train], holdout: [val, test]}
"""
MODEL = [f"model.arch={grids.VIT}", f"model.image_size={grids.SIZE}", "model.crop=1.0"]


@pytest.fixture
def mixed(tmp_path: Path) -> Recipe:
    """A benchmark of folders and a table, which lists the images of the folder `tinted`."""
    grids.draw(tmp_path / "images")
    rows = ["path,label,region,part"]
    for number, file in enumerate(sorted((tmp_path / "images" / "tinted").glob("*/*"))):
        part, region = ("train", "val", "test")[number % 3], "ab"[number % 2]
        rows.append(f"{file.parent.name}/{file.name},{file.parent.name},{region},{part}")
    (tmp_path / "images" / "tinted.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "mixed.yaml").write_text(BENCHMARK, encoding="utf-8")
    return benchmark(tmp_path)


def benchmark(folder: Path, *words: str) -> Recipe:
    given = [*MODEL, f"runs={folder / 'runs'}", *words]
    return recipe_of_sections("vit_tiny_random", str(folder / "mixed.yaml"), parsed(given))


def opened(folder: Path, name: str, *words: str) -> LabelledSet:
    return Sets(benchmark(folder, *words), CPU, folder)[name]


def test_a_table_gives_the_pack_of_its_folders(mixed, tmp_path):
    of_table = opened(tmp_path, "tinted")
    plain = BENCHMARK[: BENCHMARK.index("per_dataset:")]
    (tmp_path / "mixed.yaml").write_text(plain, encoding="utf-8")
    folders, of_folder = benchmark(tmp_path), opened(tmp_path, "tinted")
    assert of_table.pack.folder != of_folder.pack.folder
    assert of_table.pack.fingerprint == of_folder.pack.fingerprint
    assert torch.equal(of_table.labels, of_folder.labels)
    assert of_table.group is not None and set(of_table.group) == {"a", "b"}
    for name in ("upstream", "outline", "few"):  # which have no keys of their own
        packs_of = [packs.pack_folder(each, name).name for each in (mixed, folders)]
        assert packs_of[0] == packs_of[1]


def test_a_published_split_is_trained_on_and_held_out(mixed, tmp_path):
    tinted = opened(tmp_path, "tinted")
    parts = tinted.pack.columns["part"]
    assert set(parts[tinted.split("train")]) == {"train"}
    assert set(parts[tinted.split("holdout")]) == {"val", "test"}
    assert len(tinted.split("train")) + len(tinted.split("holdout")) == len(parts)
    encoded = work.size_of(mixed, "tinted")
    assert encoded == (35, 5, pytest.approx(len(tinted.split("holdout"))))
    elsewhere = benchmark(tmp_path, f"runs={tmp_path / 'elsewhere'}")
    assert work.size_of(elsewhere, "tinted") == encoded, "from the table itself"
    key = tinted.split_key(mixed.dataset)
    assert key != opened(tmp_path, "few").split_key(mixed.dataset)
    with pytest.raises(ValueError, match=r"part is 'test', but must be one of train, val"):
        opened(
            tmp_path, "tinted", "dataset.per_dataset.tinted.split.holdout=[val]", "dataset.seed=1"
        )


LISTED = """\
name: listed
root: images
upstream: upstream
sets: [outline, tinted, few]
per_dataset:
  tinted: {split: {files: lists.csv, column: part, train: [train], holdout: [test]}}
  few:
    split: {files: {fit: fit.txt, judge: judge.txt}, column: part, train: [fit], holdout: [judge]}
"""


def test_a_list_of_files_splits_folders(tmp_path):
    images = tmp_path / "images"
    grids.draw(images)
    (tmp_path / "mixed.yaml").write_text(LISTED, encoding="utf-8")
    paths = [str(file.relative_to(images)) for file in sorted(images.glob("*/*/*"))]
    part_of = {path: ("train", "test")[k % 3 == 0] for k, path in enumerate(paths)}
    rows = [f"{path},{part}" for path, part in part_of.items()]
    (images / "lists.csv").write_text("\n".join(["path,part", *rows]), encoding="utf-8")
    few = [path for path in paths if path.startswith("few/")]
    lines = [f"{path} 3" for path in few[1:]]  # DomainBed's lists have numbers of classes
    (images / "judge.txt").write_text(few[0], encoding="utf-8")
    (images / "fit.txt").write_text("\n".join(lines), encoding="utf-8")
    sets = Sets(benchmark(tmp_path), CPU, tmp_path)
    tinted = sets["tinted"]
    parts = [part_of[f"tinted/{key}"] for key in tinted.pack.keys.tolist()]
    assert tinted.pack.columns["part"].tolist() == parts
    assert "part" not in tinted.columns, "the split is no group"
    assert tinted.holdout.tolist() == [k for k, part in enumerate(parts) if part == "test"]
    assert [f"few/{key}" for key in sets["few"].pack.keys[sets["few"].holdout]] == few[:1]
    assert work.size_of(benchmark(tmp_path, f"runs={tmp_path}/other"), "few").held_out == 1
    (images / "fit.txt").write_text("\n".join([*lines[:-1], f"{few[-1]}"]), encoding="utf-8")
    opened(tmp_path, "few")  # the same images in the same parts
    (images / "judge.txt").write_text(few[1], encoding="utf-8")
    (images / "fit.txt").write_text("\n".join([few[0], *lines[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the images in .*few changed since"):
        opened(tmp_path, "few")


def test_names_of_files_are_the_parts_of_a_split(tmp_path):
    """As in the docs, for one dataset or all: the same images as with every key."""
    images = tmp_path / "images"
    grids.draw(images)
    paths = [str(file.relative_to(images)) for file in sorted(images.glob("*/*/*"))]
    for number, part in enumerate(("train", "val", "test")):
        (images / f"{part}.txt").write_text("\n".join(paths[number::3]), encoding="utf-8")
    files = "files: {train: train.txt, val: val.txt, test: test.txt}"
    whole = f"{files}, column: split, train: [train], holdout: [val, test]"
    plain = LISTED[: LISTED.index("per_dataset:")]
    found = []
    for split in (f"per_dataset: {{few: {{split: {{{whole}}}}}}}", f"split: {{{files}}}"):
        (tmp_path / "mixed.yaml").write_text(f"{plain}{split}\n", encoding="utf-8")
        few = opened(tmp_path, "few")
        found.append((few.pack.folder, few.split_by, few.holdout.tolist()))
        assert few.pack.columns["split"][few.train].tolist() == ["train"] * len(few.train)
        assert "split" not in few.columns, "the split is no group"
        elsewhere = benchmark(tmp_path, f"runs={tmp_path}/other")
        assert work.size_of(elsewhere, "few").held_out == pytest.approx(len(few.holdout))
    assert found[0] == found[1] and 0 < len(found[0][2]) < len(few.pack)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("tinted/bar/x.png,train", r"line 37: there is no image tinted/bar/x.png: correct"),
        ("tinted/bar/0.png,train", r"line 37: tinted/bar/0.png is also in .*line 2: keep one"),
        ("tinted/bar/0.png,", r"line 37: part is empty: write a value"),
        ("tinted/bar/0.png,val", r"line 37: part is 'val', but must be one of test, train"),
        ("tinted/bar/0.png", r"line 37: 1 values for 2 columns"),
        (None, r"lists.csv does not list 1 images, such as tinted/square/6.png: add rows, or"),
    ],
)
def test_a_list_that_does_not_fit_the_folder_is_named(tmp_path, row, message):
    images = tmp_path / "images"
    grids.draw(images)
    (tmp_path / "mixed.yaml").write_text(LISTED, encoding="utf-8")
    rows = [f"{file.relative_to(images)},train" for file in sorted(images.glob("tinted/*/*"))]
    rows = [*rows[:-1]] if row is None else [*rows, row]
    (images / "lists.csv").write_text("\n".join(["path,part", *rows]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "tinted")


def test_a_label_that_the_head_lacks_is_named_before_a_row_is_encoded(mixed, tmp_path):
    table = tmp_path / "images" / "tinted.csv"
    table.write_text(table.read_text().replace(",disc,", ",disk,", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tinted.csv, line 16: label is 'disk', but must be one"):
        opened(tmp_path, "tinted")
    assert not list((tmp_path / "runs" / "packs").glob("*tinted*"))


def test_a_table_has_classes_that_join_outputs_of_the_head(mixed, tmp_path):
    """As in the docs; a label that the file lacks is named before a row is encoded."""
    table = tmp_path / "images" / "tinted.csv"
    text = table.read_text().replace(",disc,", ",round,").replace(",ring,", ",round,")
    table.write_text(text, encoding="utf-8")
    file = tmp_path / "joined.csv"
    lines = ["class,output", *(f"{each},{each}" for each in ("bar", "cross", "square"))]
    file.write_text("\n".join([*lines, "round,disc", "round,ring"]), encoding="utf-8")
    words = [f"dataset.per_dataset.tinted.class_map={file}"]
    labelled = opened(tmp_path, "tinted", *words)
    assert labelled.pack.classes == ("bar", "cross", "round", "square")
    table.write_text(text.replace(",square,", ",sqare,", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tinted\.csv, line \d+: label is 'sqare', but must be"):
        opened(tmp_path, "tinted", *words, f"runs={tmp_path / 'elsewhere'}")
    assert not list((tmp_path / "elsewhere").glob("packs/*tinted*"))


def test_a_table_trains_the_model_of_the_same_images_in_folders(tmp_path, grid):
    """With the split, groups and source photos in columns: equal pixels, weights and answers."""
    grids.draw(tmp_path / "images")
    file = tmp_path / "mixed.yaml"
    plain = BENCHMARK[: BENCHMARK.index("per_dataset:")] + "sources: names\n"
    more = ["optimizer={name: sgd, lr: 0.02}", "train={epochs: 1, batch_size: 12, warmup_steps: 1}"]
    more += ["device=cpu", "method=fine_tune", "downstream=tinted", "model=vit_tiny_random"]

    def trained() -> tuple[Builder, Cell]:
        words = [*MODEL, f"runs={tmp_path / 'runs'}", f"dataset={file}", *more]
        plan = plan_cell("emoji/fine_tune", parsed(words))
        builder = Builder(plan, CPU, Sets(plan.recipe, CPU, tmp_path))
        cell = builder.build()
        passes.evaluate(builder, [{cell.name: 1.0}], ["tinted", "few"], "holdout")
        return builder, cell

    file.write_text(plain, encoding="utf-8")
    of_folder, first = trained()
    target = of_folder.target
    rows = ["path,label,region,photo,part"]
    held_out = set(target.holdout.tolist())
    for number, (image, photo) in enumerate(
        zip(target.pack.keys, target.pack.sources, strict=True)
    ):
        part, label = ("train", "test")[number in held_out], image.split("/")[0]
        rows.append(f"{image},{label},{'ab'[number % 2]},{photo},{part}")
    (tmp_path / "images" / "tinted.csv").write_text("\n".join(rows), encoding="utf-8")
    own = BENCHMARK[BENCHMARK.index("per_dataset:") :].replace("[val, test]", "[test]")
    file.write_text(plain + own + "    source_column: photo\n", encoding="utf-8")
    of_table, second = trained()
    assert first.name != second.name, "the split is part of a cell's name"
    assert of_table.target.pack.fingerprint == target.pack.fingerprint
    assert of_table.target.pack.sources.tolist() == target.pack.sources.tolist()
    assert set(of_table.target.group) == {"a", "b"} and target.group is None
    weights = [cell.state() for cell in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("tinted", "few"):
        answers = [
            predictions.read_predictions(passes.predicted(each, {cell.name: 1.0}, name, "holdout"))
            for each, cell in ((of_folder, first), (of_table, second))
        ]
        shared = ["index", "top1", "p_top1", "p_label", "margin", "source"]
        shared = [column for column in shared if column in answers[0].column_names]
        assert answers[0].select(shared).equals(answers[1].select(shared)) and len(shared) > 3


@pytest.mark.parametrize(
    ("class_reduction", "rule"), [("max", torch.amax), ("sum", torch.logsumexp)]
)
def test_a_file_says_which_outputs_a_class_joins(mixed, tmp_path, class_reduction, rule):
    for label in ("bars", "rounds"):
        shutil.copytree(tmp_path / "images" / "few" / "ring", tmp_path / "images" / "round" / label)
    file = tmp_path / "round.csv"
    lines = ["class,output", "rounds,ring", "rounds,disc", "bars,bar"]
    file.write_text("\n".join(lines), encoding="utf-8")
    own = BENCHMARK + f"  round: {{class_map: round.csv, class_reduction: {class_reduction}}}\n"
    (tmp_path / "mixed.yaml").write_text(own, encoding="utf-8")
    words = ["dataset.sets=[round,few]"]
    sets = Sets(benchmark(tmp_path, *words), CPU, tmp_path)
    labelled = sets["round"]
    bar, disc, ring = (sets.classes.index(name) for name in ("bar", "disc", "ring"))
    assert labelled.pack.classes == ("bars", "rounds")
    assert set(labelled.labels.tolist()) == {bar, ring}
    assert labelled.mask is not None and labelled.mask.nonzero().ravel().tolist() == [bar, ring]
    logits = torch.randn(4, len(sets.classes))
    joint = masks.grouped(logits, labelled.members, labelled.class_reduction)
    assert torch.allclose(joint[:, ring], rule(logits[:, [ring, disc]], dim=1))
    assert torch.equal(joint[:, bar], logits[:, bar])
    file.write_text("\n".join(lines[:3]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"round.csv has no outputs of 1 classes, such as 'bars'"):
        opened(tmp_path, "round", *words)
    file.write_text("\n".join([*lines, "bars,brr"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"round.csv, line 5: .*; did you mean 'bar'"):
        opened(tmp_path, "round", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["dataset.per_dataset.tintd.images=3"],
            "dataset.per_dataset.tintd: no dataset .*; did you mean 'tinted'",
        ),
        (
            ["dataset.per_dataset.tinted.split.colum=x"],
            "'dataset.per_dataset.tinted.split.colum'.*split.column",
        ),
        (
            ["dataset.per_dataset={few: {split: {train: [a]}}}"],
            "dataset.split of few names no column: set",
        ),
        (
            ["dataset.per_dataset={few: {split: {files: a.txt}}}"],
            "dataset.split of few names no column",
        ),
        (
            ["dataset.per_dataset={few: {split: {files: {fit: a.txt, val: b.txt}}}}"],
            "dataset.split.files of few names fit, val: name `train` and a part to hold out",
        ),
        (
            ["dataset.per_dataset={few: {split: {files: {train: a.txt}}}}"],
            "few names train: name `train` ",
        ),
    ],
)
def test_a_wrong_key_of_a_datasets_own_is_an_error(mixed, tmp_path, words, message):
    with pytest.raises(RecipeError, match=message):
        benchmark(tmp_path, *words)


def test_own_keys_of_a_dataset_that_is_left_out_are_dropped(mixed, tmp_path):
    assert list(mixed.dataset.per_dataset) == ["tinted"]
    without = benchmark(tmp_path, "dataset.sets=[outline,few]")
    assert without.dataset.per_dataset == {}
    (tmp_path / "again.yaml").write_text(dump_recipe(without), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")).dataset == without.dataset


def test_a_class_joins_outputs_by_a_plus_if_the_head_has_them():
    position = {"bar": 0, "disc": 1, "a+b": 2}
    names = [masks.names(label, position) for label in ("bar", "bar+disc", "a+b", "bar+c")]
    assert names == [["bar"], ["bar", "disc"], ["a+b"], ["bar+c"]]


@pytest.mark.parametrize(
    ("benchmark", "words", "name", "images"),
    [
        ("imagenet_rib", [], "imagenet_c", 50_000),
        ("imagenet_rib", ["dataset.subsample=full"], "imagenet_c", 3_750_000),
        ("imagenet_rib", [], "imagenet_a", 7500),
        ("emoji", ["dataset.classes=20", "dataset.renderings=3"], "openmoji", 60),
        ("emoji", ["dataset.classes=20", "dataset.renderings=3"], "blur", 120),
        ("pacs", [], "photo", 1670),
        ("terra_incognita", [], "location_38", None),
    ],
)
def test_recipes_tell_how_many_images_to_expect(benchmark, words, name, images):
    given = recipe_of_sections("vit_tiny_random", benchmark, parsed(words))
    assert kind_of(given.dataset, name).expected_images() == images


USERS = """\
from dataclasses import dataclass
from pathlib import Path

from engine.data.kinds import base
from engine.recipe.schema import DatasetRecipe
from loaders import folders

Path(__file__).with_suffix(".ran").touch()


@dataclass(frozen=True)
class Recipe(DatasetRecipe):
    place: str = "tinted"


class Kind(base.Kind):
    def listing(self, cache, source=None, *, partial=False):
        return folders.list_folders(Path(self.dataset.root) / self.dataset.place)
"""


def test_a_users_kind_is_read_by_a_process_of_its_own(mixed, tmp_path):
    """So what the file changes reaches neither the head nor the features that come after."""
    (tmp_path / "apart.py").write_text(USERS, encoding="utf-8")
    text = (
        BENCHMARK[: BENCHMARK.index("per_dataset:")] + "per_dataset: {tinted: {kind: apart.py}}\n"
    )
    (tmp_path / "mixed.yaml").write_text(text, encoding="utf-8")
    cell = CellPlan(benchmark(tmp_path))
    encode_apart(cell, ["few", "tinted"])
    assert (tmp_path / "apart.ran").exists()
    assert not any(name.endswith("_apart") for name in sys.modules), "it ran elsewhere"
    assert packs.is_encoded(cell.recipe, "tinted") and not packs.is_encoded(cell.recipe, "few")
    assert len(Sets(cell.recipe, CPU, tmp_path)["tinted"].pack) == 35
    (tmp_path / "apart.py").write_text(f"{USERS}raise OSError('no network')\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tinted was not encoded: .*apart\.py ended with code 2"):
        encode_apart(cell, ["tinted"])


def test_a_users_kind_does_not_run_where_its_pack_exists(mixed, grid, tmp_path):
    """The job that makes the pretrained model, whose name in the store holds no word of the file,
    runs the file neither itself nor, once there is a pack, in another process."""
    (tmp_path / "kept.py").write_text(USERS, encoding="utf-8")
    text = BENCHMARK[: BENCHMARK.index("per_dataset:")] + "per_dataset: {tinted: {kind: kept.py}}\n"
    (tmp_path / "mixed.yaml").write_text(text, encoding="utf-8")
    campaign = "extends: emoji\ndataset: mixed.yaml\nmodel: vit_tiny_random\nmethods: [fine_tune]\n"
    (tmp_path / "c.yaml").write_text(f"{campaign}device: cpu\n", encoding="utf-8")
    plan = campaigns.planned(tmp_path, *MODEL, f"runs={tmp_path / 'runs'}", name="c")
    ran = tmp_path / "kept.ran"
    assert not ran.exists(), "planning runs no kind"
    campaigns.do(plan, PREPARE)
    ran.unlink()
    for name in ("weights", "features", "predictions", "cells"):
        shutil.rmtree(tmp_path / "runs" / "store" / name, ignore_errors=True)
    campaigns.do(plan, PREPARE)
    assert not ran.exists() and not any(name.endswith("_kept") for name in sys.modules)


def test_a_users_kind_runs_only_to_read_images(mixed, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(USERS, encoding="utf-8")
    file, ran = tmp_path / "mixed.yaml", tmp_path / "mine.ran"
    text = BENCHMARK[: BENCHMARK.index("per_dataset:")]
    file.write_text(text + "per_dataset: {tinted: {kind: mine.py}}\n", encoding="utf-8")
    resolved = benchmark(tmp_path)
    campaign = tmp_path / "c.yaml"
    campaign.write_text("extends: emoji\ndataset: mixed.yaml\nmodel: vit_tiny_random\n", "utf-8")
    words = [*MODEL, f"runs={tmp_path / 'runs'}"]
    plan = make_plan(str(campaign), parsed(words))
    assert [module for module in plan.modules if module.endswith(".py")] == [
        str(tmp_path / "mine.py")
    ]
    before = packs.pack_folder(resolved, "tinted")
    with pytest.raises(ValueError, match=r"tinted is not encoded, and only .*mine\.py knows its"):
        kind_of(resolved.dataset, "tinted").counts()
    with pytest.raises(PermissionError, match="only commands that train or encode run it"):
        Sets(resolved, CPU, tmp_path)["tinted"]
    assert not ran.exists()
    encode = ["encode", "tinted", "--dataset", str(file), "--model", "vit_tiny_random", *words]
    assert cli.main(encode) == 0 and ran.exists()
    assert "35 images of 5 classes" in capsys.readouterr().out
    ran.unlink()
    assert len(Sets(resolved, CPU, tmp_path)["tinted"].pack) == 35 and not ran.exists()
    (tmp_path / "mine.py").write_text(USERS + "\nCHANGED = True\n", encoding="utf-8")
    assert make_plan(str(campaign), parsed(words)).place.name != plan.place.name
    assert packs.pack_folder(resolved, "tinted") != before
    file.write_text(text + "per_dataset: {tinted: {kind: mine.py, plac: x}}\n", encoding="utf-8")
    assert cli.main(encode) == 2
    assert "mine.py: unknown key 'dataset.plac'; did you mean" in capsys.readouterr().err
    (tmp_path / "mine.py").unlink()
    file.write_text(text + "per_dataset: {tinted: {kind: mine.py}}\n", encoding="utf-8")
    assert cli.main(encode) == 2
    assert "dataset.per_dataset.tinted: kind='" in (error := capsys.readouterr().err)
    assert "mine.py' is not a Python file" in error
    # Whoever audits a published plan may not have the file.
    assert kind_of(resolved.dataset, "tinted").expected_images() is None
