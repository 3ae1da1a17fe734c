"""Columns that train on the union of several sets."""

import dataclasses
import itertools
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from engine import cli
from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.data.sets import Sets, union_of
from engine.evaluation import features
from engine.recipe.overrides import parsed
from engine.report import results_file
from helpers import campaigns, grids, tiny_packs
from loaders.batches import Resident, Stream
from loaders.pack import Item

CPU = torch.device("cpu")
FOUR = ("outline", "tinted", "few", "plain")
LEFT_OUT = {"+".join(name for name in FOUR if name != left): left for left in FOUR}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The drawn shapes, with two more sets."""
    images = tmp_path_factory.mktemp("four sets") / "images"
    grids.draw(images)
    for (number, name), (label, shape) in itertools.product(
        enumerate(("plain", "further")), enumerate(grids.CLASSES)
    ):
        (images / name / shape).mkdir(parents=True)
        for copy in range(5):
            rng = np.random.default_rng([9 + number, label, copy])
            grids.drawing(shape, name, rng).save(images / name / shape / f"{copy}.png")
    return images


@pytest.fixture
def builder(images, tmp_path, grid):  # `grid` starts the process's only rank
    """Builders of cells of these drawings, below the test's folder."""
    campaigns.describe(tmp_path, images)
    words = (f"dataset.sets=[{','.join(FOUR)}]", f"runs={tmp_path / 'runs'}")

    def make(*extra: str, packs=None) -> Builder:
        given = parsed([*words, *extra])
        cell = plan_cell(str(tmp_path / "shapes.yaml"), given, method="fine_tune")
        sets = Sets(cell.recipe, CPU, Path("/nonexistent"), packs)
        return Builder(cell, CPU, sets)

    return make


def test_a_union_has_the_images_labels_and_splits_of_its_sets(builder):
    of = builder("downstream=outline+few+plain")
    union, parts = of.target, [of.sets[name] for name in ("outline", "few", "plain")]
    starts = np.cumsum([0, *(len(part.pack) for part in parts)])
    assert union.labels.tolist() == [label for part in parts for label in part.labels.tolist()]
    for name in ("train", "holdout"):
        expected = [start + part.split(name) for part, start in zip(parts, starts, strict=False)]
        assert union.split(name).tolist() == np.concatenate(expected).tolist()
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(len(union.pack)), 2))
    pixels = np.concatenate([part.pack.pixels(np.arange(len(part.pack))) for part in parts])[index]
    assert np.array_equal(union.pack.pixels(index), pixels)
    for source in (Resident(union.pack), Stream(union.pack)):
        batches = source.batches(np.array_split(index, 7))
        read = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1)
        assert np.array_equal(read.numpy(), pixels)
    assert union.mask is None, "outline has all classes of the head"
    assert of.sets["few"].mask is not None
    stored = [features.stored(of, of.base, part) for part in (union, *parts)]
    assert torch.equal(stored[0], torch.cat(stored[1:]))
    assert not list(of.store.root.glob("features/*+*")), "no image is computed twice"


def test_shots_are_of_the_union_and_train_images_of_each_set(builder):
    of = builder("downstream=outline+few", "dataset.train_images=12")
    size, starts = len(of.target.training(of.recipe)), len(of.sets["outline"].pack)
    assert size == 12 + 12
    assert (of.target.training(of.recipe) < starts).sum() == 12
    assert of.target.part_key(of.recipe)["thinned"] == {"images": 12, "seed": 0}
    few = builder("downstream=outline+few", "dataset.shots=3")
    labels = few.target.labels.numpy()[few.target.training(few.recipe)]
    assert np.bincount(labels).tolist() == [3] * 5


def test_training_on_a_union_is_training_on_one_folder_of_all_its_images(builder, tmp_path):
    """Bit for bit, if the folder's images are in the union's order and none is held out; a folder
    of its own draws other held-out images, and batches other images together."""
    joined = builder("downstream=outline+few", "dataset.holdout=0")
    parts = [joined.sets[name].pack for name in ("outline", "few")]
    pixels = np.concatenate([pack.pixels(np.arange(len(pack))) for pack in parts])
    names = [pack.classes[label] for pack in parts for label in pack.labels]
    items = [Item(grids.CLASSES.index(name), f"{k}", f"{k}", k) for k, name in enumerate(names)]
    whole = tiny_packs.make(
        tmp_path / "whole",
        items=items,
        open_image=lambda k: Image.fromarray(pixels[k]),
        classes=list(grids.CLASSES),
        name="whole",
    )
    words = ("downstream=whole", "dataset.train_sets=[whole]", "dataset.holdout=0")
    of_folder = builder(*words, packs={"whole": whole})
    a, b = joined.target, of_folder.target
    assert a.labels.equal(b.labels) and a.mask is None and b.mask is None
    assert a.training(joined.recipe).tolist() == b.training(of_folder.recipe).tolist()
    states = [each.build().state() for each in (joined, of_folder)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    single = builder("downstream=outline", "dataset.holdout=0").build().state()
    assert any(not torch.equal(states[0][name], single[name]) for name in single)


def test_a_union_is_cropped_from_the_larger_images_of_its_sets(builder):
    cropped = "train.augment=[crop]"
    of = builder("downstream=outline+few", cropped)
    source = of.sets.training_source(of.recipe)
    alone = []
    for name in ("outline", "few"):
        single = builder(f"downstream={name}", cropped)
        index = np.arange(len(single.target.pack))
        alone += [b.images for b in single.sets.training_source(single.recipe).batches([index])]
    (batch,) = source.batches([np.arange(len(of.target.pack))])
    assert batch.images.shape[2] > grids.SIZE
    assert torch.equal(batch.images, torch.cat(alone))
    trained, plain = (each.build().state() for each in (of, builder("downstream=outline+few")))
    assert any(not torch.equal(trained[name], plain[name]) for name in plain)


def test_the_mask_of_a_union_allows_the_classes_of_its_sets(builder):
    of = builder("downstream=few")
    few = of.sets["few"]
    only_bar = dataclasses.replace(few, mask=torch.tensor([True, False, False, False, False]))
    assert union_of("few+bar", [few, only_bar]).mask.tolist() == [True, True, False, True, True]


def test_bad_unions_are_refused(builder, images, tmp_path):
    names = "dataset.sources=names"
    with pytest.raises(ValueError, match="photos are held out of one dataset and trained on in"):
        builder("downstream=outline+few", names).target  # noqa: B018
    shared = builder("downstream=outline+few", names, "dataset.holdout_by=source").target
    held_out = [part.pack.sources[part.holdout].tolist() for part in shared.parts]
    assert {*held_out[1]} < {*held_out[0]}
    of = builder("downstream=outline+few")
    few = dataclasses.replace(of.sets["few"], holdout=np.arange(0))
    union = dataclasses.replace(of.target, parts=(of.sets["outline"], few))
    with pytest.raises(ValueError, match="holds out no image of few"):
        union.training(of.recipe)
    joint = dataclasses.replace(few, members=torch.tensor([[0, 1], [2, 2]]))
    with pytest.raises(ValueError, match="several outputs"):
        union_of("outline+few", [of.sets["outline"], joint])


def test_equal_unions_have_one_name(folder):
    runs = f"runs={folder / 'elsewhere'}"
    one = campaigns.planned(folder, runs, "downstreams=[[few,outline],tinted]")
    other = campaigns.planned(folder, runs, "downstreams=[outline+few,tinted]")
    assert one.place == other.place
    assert one.downstreams == ["outline+few", "tinted"]
    assert one.columns[0].job == "column-outline+few"
    assert "outline+few" not in one.needed and set(one.needed) >= {"outline", "few"}


@pytest.mark.slow
def test_each_set_is_left_out_once_and_others_are_outside_ri(images, grid, tmp_path):
    campaigns.describe(tmp_path, images)
    report = campaigns.run(
        tmp_path,
        f"dataset.sets=[{','.join(FOUR)}]",
        "downstreams=leave_one_out",
        "dataset.evaluate_on=[further]",
        "evaluate.calibration=true",
        "train.snapshots=3",
    )
    assert campaigns.of_report(report).record.downstreams == [*LEFT_OUT]
    keys = ["method", "alpha", "setting", "downstream"]
    table, numbers, mri = (
        pandas.read_csv(report / f"{name}.csv", keep_default_na=False)
        for name in ("accuracy", "intervals", "mri")
    )
    accuracy = table.set_index([*keys, "evaluated_on"])["accuracy_pct"].sort_index()
    ri = numbers.query("quantity == 'RI'").set_index(keys)["value"]
    mri = mri.set_index(keys[:3])["mRI_pts"]
    arms = {key[:3] for key in accuracy.index if key[0] != "pretrained"}
    assert len(arms) > 5
    for arm in arms:
        change = {
            i: accuracy[*arm, i, j] - accuracy["pretrained", "", "", "", j]
            for i, j in LEFT_OUT.items()
        }
        assert {i: float(ri[*arm, i]) for i in LEFT_OUT} == pytest.approx(change)
        assert mri[arm] == pytest.approx(fmean(change.values()))
    images_of = {"outline": 10, "tinted": 10, "few": 6, "plain": 5, "further": 25, "upstream": 10}
    assert (table["images"] == table["evaluated_on"].map(images_of)).all(), "further has 25 in all"
    tuned = accuracy["fine_tune", "", ""]
    ranking = {row["method"]: row for row in campaigns.rows(report / "tables" / "ranking.csv")}
    own = [tuned[i, j] for i in LEFT_OUT for j in FOUR if j != LEFT_OUT[i]]
    assert float(ranking["fine_tune"]["downstream_accuracy_pct"]) == pytest.approx(fmean(own))
    text = " ".join((report / "table.txt").read_text().split())
    assert "on the dataset left out, in points" in text and "all all all all but" in text
    before = {i: accuracy["pretrained", "", "", "", j] for i, j in LEFT_OUT.items()}
    (shown,) = (line for line in text.split("FT")[0].split("pretrained") if "%, left out" in line)
    assert sorted(shown.split()[3:]) == sorted(f"{of:.1f}" for of in before.values())
    (further,) = [
        row
        for row in campaigns.rows(report / "tables" / "further.csv")
        if row["method"] == "fine_tune"
    ]
    assert further["evaluated_on"] == "further"
    after = [tuned[i, "further"] for i in LEFT_OUT]
    change = fmean(after) - accuracy["pretrained", "", "", "", "further"]
    assert float(further["change_pts"]) == pytest.approx(change)
    assert f"{change:+.1f}" in text.partition("outside RI")[2]
    content = results_file.read_results((report / "results.json").read_bytes())
    assert (content.sets, content.evaluate_on) == (list(FOUR), ["further"])
    of = {
        n.downstream: n.value
        for n in content.numbers
        if n.evaluated_on == "further"
        if (n.method, n.quantity, n.setting) == ("fine_tune", "accuracy", "")
    }
    assert [of[i] for i in LEFT_OUT] == pytest.approx(after)


@pytest.mark.slow
def test_without_upstream_a_dataset_may_be_in_every_column(images, grid, tmp_path):
    """Then no model is evaluated on it that was not trained on it."""
    campaigns.describe(tmp_path, images)
    report = campaigns.run(
        tmp_path,
        "dataset.upstream=null",
        f"dataset.sets=[{','.join(FOUR)}]",
        "downstreams=[tinted+few,tinted+plain]",
        "methods=[linear_probe]",
    )
    table = pandas.read_csv(report / "accuracy.csv").query("evaluated_on == 'tinted'")
    assert set(table["downstream"]) == {"tinted+few", "tinted+plain"} and len(table) == 4


def test_without_upstream_each_column_has_a_head_of_its_own_and_leaves_a_dataset_out_whole(
    images, grid, tmp_path, capsys
):
    """As DomainBed: nothing of the dataset that is left out is trained on, and all is scored."""
    campaigns.describe(tmp_path, images)
    report = campaigns.run(
        tmp_path,
        "dataset.upstream=null",
        f"dataset.sets=[{','.join(FOUR)}]",
        "downstreams=leave_one_out",
        "evaluate.calibration=true",
        "extras.cka.images=30",
        "train.snapshots=3",
    )
    record = campaigns.of_report(report).record
    assert (record.downstreams, record.upstream) == ([*LEFT_OUT], None)
    keys = ["method", "alpha", "setting", "downstream"]
    table, numbers, mri = (
        pandas.read_csv(report / f"{name}.csv", keep_default_na=False)
        for name in ("accuracy", "intervals", "mri")
    )
    accuracy = table.set_index([*keys, "evaluated_on"])["accuracy_pct"].sort_index()
    ri = numbers.query("quantity == 'RI'").set_index(keys)["value"]
    arms = {key[:3] for key in accuracy.index if key[0] != "pretrained"}
    before = {i: accuracy["pretrained", "", "", i, j] for i, j in LEFT_OUT.items()}
    for arm in arms:
        change = {i: accuracy[*arm, i, j] - before[i] for i, j in LEFT_OUT.items()}
        assert {i: float(ri[*arm, i]) for i in LEFT_OUT} == pytest.approx(change)
        assert mri.set_index(keys[:3])["mRI_pts"][arm] == pytest.approx(fmean(change.values()))
    counts = table.groupby(
        [table["downstream"].map(LEFT_OUT) == table["evaluated_on"], "evaluated_on"]
    )
    n = counts["images"].unique().map(lambda values: values.item())
    everything = {"outline": 35, "tinted": 35, "few": 21, "plain": 25}
    held_out = {"outline": 10, "tinted": 10, "few": 6, "plain": 5}
    assert (n[True].to_dict(), n[False].to_dict()) == (everything, held_out)
    bases = {
        row.downstream: row.path.parent for row in record.evaluations if row.method == "pretrained"
    }
    assert len({*bases.values()}) == len(bases) == 4
    text = " ".join((report / "table.txt").read_text().split())
    on_own = {
        i: fmean(accuracy["pretrained", "", "", i, other] for other in FOUR if other != j)
        for i, j in LEFT_OUT.items()
    }
    row = " ".join(f"{before[i]:.1f}" for i in sorted(on_own, key=lambda i: -on_own[i]))
    assert f"pretrained %, left out {row}" in text, text
    out = tmp_path / "published"
    assert cli.main(["publish", str(report.parent), "--out", str(out)]) == 0
    assert cli.main(["audit", str(out), "--runs", str(report.parents[1])]) == 0
    assert "images of tinted: as in packs" in capsys.readouterr().out
