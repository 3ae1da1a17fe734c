"""Bank evaluation: what is stored of every image, and what an artefact's name depends on."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from engine.cells.build import Builder
from engine.evaluation import passes
from engine.recipe.methods import METHODS
from helpers.evaluations import IMAGES, Counted, by_timm, check_predictions, tables
from helpers.evaluations import same as same_tables
from helpers.grids import CONV, SETS, same, weights


def test_a_bank_says_what_each_model_says_alone_bit_for_bit(grid, fresh, mixes):
    together = tables(grid.builder(), mixes, [*SETS])
    alone = [table for mix in mixes for table in tables(fresh.builder(), [mix], [*SETS])]
    assert same_tables(together, alone)
    probabilities = {tuple(table["p_true"].to_pylist()) for table in together[:: len(SETS)]}
    assert len(probabilities) == len(mixes), "models that agree on everything show nothing"


@pytest.mark.slow
def test_a_stream_gives_what_a_resident_set_gives(grid, fresh, mixes):
    resident = tables(grid.builder("loader=resident"), mixes, [*SETS])
    assert same_tables(tables(fresh.builder("loader=stream"), mixes, [*SETS]), resident)


@pytest.mark.parametrize("name", ["outline", "few"])
@pytest.mark.parametrize("method", ["fine_tune", "linear_probe", "visual_prompt"])
def test_predictions_are_those_of_timm_read_by_hand(grid, name, method):
    builder, cell = grid.build(f"method={method}")
    (table,) = tables(builder, [{cell.name: 1.0}], [name])
    check_predictions(table, *by_timm(grid, name, weights(cell), cell.prompt()))
    assert table["index"].to_pylist() == [*range(len(table))]
    pack, metadata = builder.sets[name].pack, table.schema.metadata
    np.testing.assert_array_equal(table["source"].to_numpy(), pack.sources)
    assert metadata[b"pack"].decode() == pack.fingerprint and cell.name in metadata[b"mix"].decode()


def test_what_is_stored_is_not_evaluated_again(fresh, mixes, monkeypatch):
    """Nor are two orders of one average."""
    tables(fresh.builder(), mixes, [*SETS])
    before = {p: p.stat().st_mtime_ns for p in fresh.runs.rglob("*") if p.is_file()}
    counted = Counted(monkeypatch)
    tables(fresh.builder(), [*mixes, *mixes], [*SETS])
    assert {p: p.stat().st_mtime_ns for p in fresh.runs.rglob("*") if p.is_file()} == before
    assert (counted.images, counted.models) == (0, 0)
    new = dict(zip(mixes[0], (0.45, 0.55), strict=True))
    tables(fresh.builder(), [*mixes, new, dict(reversed(new.items()))], ["tinted"])
    assert (counted.images, counted.models) == (IMAGES, 1)


def test_a_split_is_evaluated_alone_and_without_one_all_is(grid):
    builder = grid.builder()
    mix = {builder.base.name: 1.0}
    (held,), (every,) = (tables(builder, [mix], ["outline"], s) for s in ("holdout", "all"))
    index = held["index"].to_numpy()
    np.testing.assert_array_equal(index, builder.target.holdout)
    apart = dataclasses.replace(builder.target, split_by="by source")
    keys = [passes.key_of(builder, mix, of, "holdout")[1] for of in (builder.target, apart)]
    assert [key["split"] for key in keys] == [["holdout", 0.25, 0, *b] for b in ([], ["by source"])]
    assert 0 < len(index) < len(every)
    assert held["top1"].equals(every.take(index)["top1"])
    right = held["label"].to_numpy() == held["top1"].to_numpy()
    assert builder.holdout_accuracy(mix) == pytest.approx(100 * right.mean())
    whole = grid.builder("dataset.holdout=0")
    mix = {whole.base.name: 1.0}
    passes.evaluate(whole, [mix], ["outline"], "all")
    assert passes.predicted(whole, mix, "outline", "holdout") == passes.predicted(
        whole, mix, "outline", "all"
    )


def test_other_images_or_a_head_of_other_classes_have_predictions_of_their_own(grid, tmp_path):
    """Of the same weights: a pixel of a set is changed, and then a class of the head renamed."""
    drawings = tmp_path / "shapes"
    shutil.copytree(grid.folder, drawings)
    changed = drawings / "tinted" / "disc" / "0.png"
    Image.eval(Image.open(changed), lambda v: v ^ 1).save(changed)
    shutil.copytree(drawings / "upstream", drawings / "other")
    (drawings / "other" / "bar").rename(drawings / "other" / "star")
    of_root = f"dataset.root={drawings}"
    before, after = grid.builder(), grid.builder(of_root)
    of_other = ("dataset.upstream=other", "dataset.sets=[few]", "downstream=few")
    renamed = grid.builder(of_root, *of_other)

    def key(builder: Builder, name: str) -> dict:
        return passes.key_of(builder, {"model": 1.0}, builder.sets[name], "all")[1]

    assert after.base.name == before.base.name, "the same images upstream, the same model"
    assert key(after, "outline") == key(before, "outline")
    assert key(after, "tinted") != key(before, "tinted")
    assert key(after, "few") == key(before, "few") != key(renamed, "few")


def test_what_is_not_there_is_named(grid):
    builder = grid.builder("evaluate.batch_size=9")
    mix = {builder.base.name: 1.0}
    with pytest.raises(
        FileNotFoundError, match=r"predictions/linear_probe-upstream-on-few-.* is missing"
    ):
        passes.predicted(builder, mix, "few", "all")
    with pytest.raises(FileNotFoundError, match=r"no cell absent-outline-00 .*`rib campaign` or"):
        passes.evaluate(builder, [{"absent-outline-00": 1.0}], ["few"], "all")


WORDS = {
    "anchor": "zero",
    "augment": "[crop]",
    "average": "beta",
    "width": 0.5,
    "alphas": "[0.2]",
    "betas": "[0.8,0.9]",
    "compile": "always",
    "fisher_labels": "data",
    "fisher_scale": "mean",
    "head": "new",
    "members": "[fine_tune,ewc,lp_ft]",
    "name": "adamw",
    "precision": "bf16",
    "select": "greedy",
    "split": "holdout",
}
NO_WEIGHTS = {"snapshots", "keep_snapshots", "checkpoint_minutes", "zero"}
CHANGES = (
    "seed=1 threads=2 downstream=tinted downstream=few dataset.holdout=0 dataset.seed=1 "
    "model.crop=0.9 model.mean=[0.4,0.5,0.5] model.head.l2=0.02 method.variant=released "
    f"model.arch={CONV}"
).split()


def changes(section: str, options: object, leave: set[str]) -> list[str]:
    """A word for each option of a section, with another value."""
    words = []
    for key, value in vars(options).items():
        if key not in leave:
            if key in WORDS:
                other = WORDS[key]
            elif isinstance(value, bool):
                other = str(not value).lower()
            else:
                other = value + 1 if isinstance(value, int) else value / 2 + 0.3
            words.append(f"{section}.{key}={other}")
    return words


@pytest.mark.slow
def test_every_option_that_changes_weights_changes_the_name_of_a_cell(grid):
    builder = grid.builder("train.clip=0.1")
    words = changes("train", builder.recipe.train, NO_WEIGHTS | {"crop_scale"})
    words += changes("optimizer", builder.recipe.optimizer, set())
    keys = {word: grid.builder("train.clip=0.1", word).key() for word in [*words, *CHANGES]}
    assert builder.key() not in keys.values()
    pairs = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert not pairs
    crops = "train.augment=[crop]"
    larger = grid.builder("train.clip=0.1", crops, "train.crop_scale=[0.9,1]")
    assert larger.key() != keys[crops]


@pytest.mark.parametrize(
    "method",
    sorted(
        set(METHODS.names())
        - {"flyp", "carot", "tracer", "lipsum_ft", "ensemble", "dawin", "checkpoint"}
    ),
)
def test_every_option_of_a_method_changes_the_name_of_its_cell(grid, method):
    builder = grid.builder(f"method={method}")
    words = changes("method", builder.recipe.method, {"name", "title", "module", "variant"})
    words.append("optimizer.lr=0.5")  # of the cell, or of those that it needs
    assert all(grid.builder(f"method={method}", word).key() != builder.key() for word in words)


def test_what_changes_no_weights_changes_no_name(grid):
    builder = grid.builder()
    of_train = {field.name for field in dataclasses.fields(builder.recipe.train)}
    words = changes("evaluate", builder.recipe.evaluate, set())
    words += changes("train", builder.recipe.train, of_train - NO_WEIGHTS)
    words += ["method.title=Other", "loader=stream", "device=cpu", "model.name=other"]
    assert len(words) == 6 + 4 + 4
    assert all(grid.builder(word).key() == builder.key() for word in words)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear_probe", "lwf"])
def test_the_precision_of_evaluation_is_not_that_of_training(grid, fresh, method):
    """Both methods learn from stored features."""
    _, cell = grid.build(f"method={method}")
    shutil.rmtree(fresh.runs / "store" / "cells")
    builder, evaluated_in_bf16 = fresh.build(f"method={method}", "evaluate.precision=bf16")
    assert evaluated_in_bf16.name == cell.name and same(weights(evaluated_in_bf16), weights(cell))
    assert not torch.equal(
        builder.features(builder.base, builder.target),
        builder.features(builder.base, builder.target, training=True),
    )
