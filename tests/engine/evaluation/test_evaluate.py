"""Bank evaluation: what is stored of every image, and what an artefact's name depends on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from damage import flip
from grids import (
    CLASSES,
    CONV,
    FEW,
    SETS,
    VIT,
    Grid,
    grid,
    images,
    labels,
    reference,
    same,
    weights,
)
from PIL import Image

from engine import models
from engine.evaluation import passes
from engine.grid.build import Builder
from engine.machine.files import cache_folder
from engine.models import checkpoints
from engine.recipe.schema import EvaluateRecipe, OptimizerRecipe, TrainRecipe
from engine.store import artifacts, cells
from engine.store.cells import Cell

__all__ = ["grid"]
PLACES = [CLASSES.index(name) for name in FEW]


@pytest.fixture(scope="module")
def column(grid: Grid) -> list[cells.Mix]:
    """Every kind of model that a column has: with one, two and three parents, and a prompt."""
    builder = grid.builder()
    base, tuned = builder.base.name, builder.cell("fine_tune").name
    cells = [builder.cell(name).name for name in ("linear_probe", "visual_prompt", "lora")]
    alone = [{name: 1.0} for name in (base, tuned, *cells)]
    return [*alone, {base: 0.7, tuned: 0.3}, {base: 0.2, tuned: 0.8}, {base: 0.5, cells[2]: 0.5}]


@pytest.fixture
def copied(grid: Grid, column: list[cells.Mix], tmp_path: Path) -> Grid:
    """The same finished cells and packs, without features and predictions."""
    shutil.copytree(grid.runs / "packs", tmp_path / "runs" / "packs")
    for kind in ("weights", "cells"):
        shutil.copytree(grid.runs / "store" / kind, tmp_path / "runs" / "store" / kind)
    return Grid(grid.folder, tmp_path / "runs", grid.device)


def tables(builder: Builder, mixes: list[cells.Mix], names=tuple(SETS), split: str = "all") -> list:
    passes.evaluate(builder.run, mixes, names, split)
    paths = [passes.predicted(builder.run, mix, name, split) for mix in mixes for name in names]
    return [pq.read_table(path) for path in paths]


def files(grid: Grid) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in grid.runs.rglob("*") if p.is_file()}


def test_a_bank_says_what_each_model_says_alone_bit_for_bit(grid, copied, column):
    together = tables(grid.builder(), column)
    alone = [table for mix in column for table in tables(copied.builder(), [mix])]
    assert len(together) == len(column) * len(SETS)
    for banked, single in zip(together, alone, strict=True):
        assert banked.equals(single)
    probabilities = {tuple(table["p_true"].to_pylist()) for table in together[:: len(SETS)]}
    assert len(probabilities) == len(column), "models that agree on everything show nothing"


@pytest.mark.slow
def test_a_stream_gives_what_a_resident_set_gives(grid, copied, column):
    resident = tables(grid.builder("source=resident"), column)
    streamed = tables(copied.builder("source=stream"), column)
    assert all(a.equals(b) for a, b in zip(resident, streamed, strict=True))


@pytest.mark.parametrize("name", ["outline", "few"])
@pytest.mark.parametrize("method", ["fine_tune", "linear_probe", "visual_prompt"])
def test_predictions_are_those_of_timm_read_by_hand(grid, name, method):
    builder, cell = grid.build(f"method={method}")
    (table,) = tables(builder, [{cell.name: 1.0}], [name])
    index = np.arange(len(table))
    truth = labels(grid, name, index).numpy()
    prompt = cell.prompt()
    x = images(grid, name, index) + (0 if prompt is None else prompt.double())
    with torch.no_grad():
        logits = reference(weights(cell))(x).numpy()
    if name == "few":
        logits[:, [i for i in range(len(CLASSES)) if i not in PLACES]] = -np.inf
        assert set(truth) == set(PLACES) and set(table["top1"].to_pylist()) <= set(PLACES)
    check_columns(table, logits, truth)
    np.testing.assert_array_equal(table["index"].to_numpy(), index)


def check_columns(table, logits: np.ndarray, truth: np.ndarray) -> None:
    """The columns from float64 logits [N, C] (-inf: not a class of the set) and labels [N]."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponents / exponents.sum(axis=1, keepdims=True)
    rows = np.arange(len(truth))
    wrong_logits = logits.copy()
    wrong_logits[rows, truth] = -np.inf
    margin = logits[rows, truth] - wrong_logits.max(axis=1)
    expected = {"p_top1": p.max(axis=1), "p_true": p[rows, truth], "margin": margin}
    np.testing.assert_array_equal(table["label"].to_numpy(), truth)
    np.testing.assert_array_equal(table["top1"].to_numpy(), logits.argmax(axis=1))
    for column, values in expected.items():
        np.testing.assert_allclose(table[column].to_numpy(), values, rtol=2e-4, atol=2e-5)
    right = table["top1"].to_numpy() == truth
    np.testing.assert_array_equal(table["margin"].to_numpy() > 0, right)


@pytest.mark.parametrize("masked", [False, True])
def test_the_table_of_given_logits(masked):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 6)) * 8
    mask = np.array([True, False, True, True, False, True])
    truth = rng.choice(np.flatnonzero(mask), 50)
    positions = rng.permutation(50)[:40]
    labelled = SimpleNamespace(
        labels=torch.from_numpy(truth),
        mask=torch.from_numpy(mask) if masked else None,
        members=None,
        group=None,
        pack=SimpleNamespace(sources=np.array([f"image {i}" for i in range(50)])),
    )
    reduced = passes.Reduction(labelled, torch.device("cpu"))(positions, torch.from_numpy(logits))
    table = passes.predictions_table([reduced], labelled, positions)
    if masked:
        logits[:, ~mask] = -np.inf
    check_columns(table, logits, truth[positions])
    assert table["source"].to_pylist() == [f"image {i}" for i in positions]


def test_a_second_evaluation_writes_and_runs_nothing(grid, column, monkeypatch):
    builder = grid.builder()
    tables(builder, column)
    before = files(grid)
    monkeypatch.setattr(passes, "_pass", lambda *_: pytest.fail("evaluated twice"))
    tables(grid.builder(), [*column, *column])
    assert files(grid) == before


def test_one_new_model_is_the_only_one_that_runs(grid, column, monkeypatch):
    builder = grid.builder()
    tables(builder, column)
    passed = []
    run = passes._pass
    monkeypatch.setattr(passes, "_pass", lambda *a: (passed.append(a[1]), run(*a)))
    new = {name: share for name, share in zip(column[5], (0.45, 0.55), strict=True)}
    tables(builder, [*column, new, dict(reversed(new.items()))], ["tinted"])
    assert passed == [[cells.essential(new)]]


def test_a_split_is_evaluated_alone_and_without_one_all_is(grid):
    builder = grid.builder()
    mix = {builder.base.name: 1.0}
    (held,), (every,) = (tables(builder, [mix], ["outline"], s) for s in ("holdout", "all"))
    index = held["index"].to_numpy()
    np.testing.assert_array_equal(index, builder.target.holdout)
    assert 0 < len(index) < len(every)
    assert held["top1"].equals(every.take(index)["top1"])
    right = held["label"].to_numpy() == held["top1"].to_numpy()
    assert builder.holdout_accuracy(mix) == pytest.approx(100 * right.mean())
    whole = grid.builder("dataset.holdout=0")
    mix = {whole.base.name: 1.0}
    passes.evaluate(whole.run, [mix], ["outline"], "all")
    assert passes.predicted(whole.run, mix, "outline", "holdout") == passes.predicted(
        whole.run, mix, "outline", "all"
    )


def test_a_split_by_source_has_names_of_its_own(grid):
    builder = grid.builder()
    mix = {builder.base.name: 1.0}

    def keys() -> list[dict]:
        of_predictions = [
            passes.key_of(builder.run, mix, builder.target, s)[1] for s in ("holdout", "all")
        ]
        return [builder.key(), *of_predictions]

    cell, held, every = keys()
    assert cell["split"] == [0.25, 0] and held["split"] == ["holdout", 0.25, 0]
    builder.sets._open["outline"] = dataclasses.replace(builder.target, by_source=True)
    apart = keys()
    assert apart[0] != cell and apart[1] != held and apart[2] == every
    builder.sets._open["outline"] = dataclasses.replace(builder.target, by_source=False)
    builder.sets._open["upstream"] = dataclasses.replace(builder.upstream, by_source=True)
    assert keys()[0] != cell, "a Fisher is of the upstream split"


def test_features_are_the_pre_logits_in_the_order_of_the_pack(grid):
    for arch in (VIT, CONV):
        builder = grid.builder(f"model.arch={arch}")
        features = builder.features(builder.base, builder.sets["few"])
        net = reference(builder.base.state(), arch)
        with torch.no_grad():
            x = images(grid, "few", np.arange(len(features)), arch)
            expected = net.forward_head(net.forward_features(x), pre_logits=True)
            torch.testing.assert_close(features.double(), expected, rtol=1e-3, atol=1e-4)
            logits = builder.logits(builder.base, builder.sets["few"])(np.arange(len(features)))
            torch.testing.assert_close(logits.double(), net(x), rtol=1e-3, atol=1e-4)


def test_a_changed_image_changes_the_name_of_its_sets_predictions_alone(grid, tmp_path):
    drawings = tmp_path / "shapes"
    shutil.copytree(grid.folder, drawings)
    changed = drawings / "tinted" / "disc" / "0.png"
    Image.eval(Image.open(changed), lambda v: v ^ 1).save(changed)
    words = f"dataset.root={drawings}"
    before, after = grid.builder(), grid.builder(words)
    mix = {before.base.name: 1.0}
    assert after.base.name == before.base.name, "the same images upstream, the same model"
    for builder in (before, after):
        tables(builder, [mix], ["outline", "tinted"])
    for name, equal in (("outline", True), ("tinted", False)):
        places = [passes.predicted(builder.run, mix, name, "all") for builder in (before, after)]
        assert (places[0] == places[1]) is equal, name
    original, changed_key = (place.parent for place in places)
    shutil.move(original, aside := original.with_name("kept"))
    shutil.copytree(changed_key, original)
    with pytest.raises(ValueError, match=f"{original} is of another key; delete {original}"):
        tables(before, [mix], ["tinted"])
    shutil.rmtree(original)
    shutil.move(aside, original)


def test_a_head_of_other_classes_has_predictions_of_its_own(grid, tmp_path):
    """The same weights and images: as many classes upstream, of which one has another name."""
    drawings = tmp_path / "shapes"
    shutil.copytree(grid.folder, drawings)
    shutil.copytree(drawings / "upstream", drawings / "other")
    (drawings / "other" / "bar").rename(drawings / "other" / "star")
    before, after = (
        grid.builder(f"dataset.root={drawings}", f"dataset.upstream={name}")
        for name in ("upstream", "other")
    )
    few, again = before.sets["few"], after.sets["few"]
    assert few.pack.fingerprint == again.pack.fingerprint
    assert few.labels.tolist() != again.labels.tolist()
    keys = [passes.key_of(b.run, {"m": 1.0}, b.sets["few"], "all")[1] for b in (before, after)]
    assert keys[0] != keys[1]


def test_a_byte_that_flipped_in_stored_predictions_is_found(grid, copied):
    builder = copied.builder()
    mix = {builder.base.name: 1.0}
    tables(builder, [mix], ["few"])
    artifact = passes.find(builder.run, mix, "few", "all")
    assert artifact is not None
    path = artifact.file("part-00000.parquet")
    artifacts._hash_once.cache_clear()
    flip(path)
    with pytest.raises(ValueError, match=rf"{path} was altered; delete {path.parent} and run"):
        passes.predicted(builder.run, mix, "few", "all")


def test_what_is_not_there_is_named(grid):
    builder = grid.builder("evaluate.batch_size=9")
    mix = {builder.base.name: 1.0}
    with pytest.raises(FileNotFoundError, match="no predictions of linear_probe-upstream-on-few"):
        passes.predicted(builder.run, mix, "few", "all")
    with pytest.raises(FileNotFoundError, match="no cell absent-outline-00 under"):
        passes.evaluate(builder.run, [{"absent-outline-00": 1.0}], ["few"], "all")


TRAIN = {
    "epochs": 3,
    "batch_size": 6,
    "accumulation": 2,
    "warmup_steps": 1,
    "clip": 0.5,
    "freeze_batchnorm": "false",
    "precision": "bf16",
    "compile": "always",
}
NO_WEIGHTS = {"checkpoint_minutes": 1, "snapshots": 2, "keep_snapshots": "true"}
OPTIMIZER = {
    "name": "adamw",
    "lr": 0.5,
    "momentum": 0.8,
    "betas": "[0.8,0.9]",
    "eps": 1e-6,
    "weight_decay": 0.1,
}
EVALUATE = {
    "batch_size": 4,
    "precision": "bf16",
    "compile": "always",
    "split": "holdout",
    "cka": 8,
    "calibration": "true",
}
CHANGES = [
    *(f"train.{key}={value}" for key, value in TRAIN.items()),
    *(f"optimizer.{key}={value}" for key, value in OPTIMIZER.items()),
    "seed=1",
    "threads=2",
    "downstream=tinted",
    "downstream=few",
    "dataset.holdout=0",
    "dataset.seed=1",
    "model.crop=0.9",
    "model.mean=[0.4,0.5,0.5]",
    "model.head.l2=0.02",
    f"model.arch={CONV}",
    "method.variant=paper",
]
OF_METHODS = {
    "ewc": ["lam=2", "fisher_images=3", "fisher_labels=data", "fisher_scale=mean"],
    "linear_probe": ["l2=2", "anchor=zero"],
    "lwf": ["weight=2", "temperature=3"],
    "lora": ["rank=2", "scale=1", "train_head=false"],
    "visual_prompt": ["frame_at_224=60"],
    "wise_ft": ["alpha=0.4", "alphas=[0.2]"],
    "soup": ["select=greedy", "members=[pre,lwf]", "members=[fine_tune,pre]"],
}


@pytest.mark.slow
def test_every_option_that_changes_weights_changes_the_name_of_a_cell(grid):
    for options, section in ((TRAIN | NO_WEIGHTS, TrainRecipe), (OPTIMIZER, OptimizerRecipe)):
        assert set(options) == {f.name for f in dataclasses.fields(section)}, "say it here too"
    plain = grid.builder().key()
    keys = {word: grid.builder(word).key() for word in CHANGES}
    same_name = [word for word, key in keys.items() if key == plain]
    assert not same_name
    pairs = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert not pairs


@pytest.mark.parametrize("method", OF_METHODS)
def test_every_option_of_a_method_changes_the_name_of_its_cell(grid, method):
    name = f"method={method}"
    plain = grid.builder(name).key()
    fields = {f.name for f in dataclasses.fields(grid.builder(name).recipe.method)}
    options = OF_METHODS[method]
    assert fields - {"name", "title", "module", "variant"} == {o.split("=")[0] for o in options}
    assert all(grid.builder(name, f"method.{option}").key() != plain for option in options)


@pytest.mark.parametrize("method", ["lp_ft", "wise_ft", "soup"])
def test_what_changes_a_needed_cell_changes_the_cell_that_needs_it(grid, method):
    name = f"method={method}"
    plain = grid.builder(name).key()
    assert plain["needs"]
    assert grid.builder(name, "optimizer.lr=0.5").key()["needs"] != plain["needs"]


def test_what_changes_no_weights_changes_no_name(grid):
    assert set(EVALUATE) == {f.name for f in dataclasses.fields(EvaluateRecipe)}
    words = [f"evaluate.{key}={value}" for key, value in EVALUATE.items()]
    words += [f"train.{key}={value}" for key, value in NO_WEIGHTS.items()]
    words += ["method.title=Other", "source=stream", "device=cpu", "model.name=other"]
    plain = grid.builder().key()
    assert all(grid.builder(word).key() == plain for word in words)
    features = grid.builder("method=linear_probe")
    assert features.key() != plain


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear_probe", "lwf"])
def test_the_precision_of_evaluation_is_not_that_of_training(grid, copied, method):
    """Both methods learn from stored features."""
    _, cell = grid.build(f"method={method}")
    shutil.rmtree(copied.runs / "store" / "cells")
    builder, evaluated_in_bf16 = copied.build(f"method={method}", "evaluate.precision=bf16")
    assert evaluated_in_bf16.name == cell.name and same(weights(evaluated_in_bf16), weights(cell))
    assert not torch.equal(
        builder.features(builder.base, builder.target),
        builder.features(builder.base, builder.target, training=True),
    )


def test_a_head_is_made_for_a_bare_backbone_and_seeded(grid):
    builder = grid.builder()
    bare = Cell(checkpoints.backbone(builder.recipe.model, builder.store, cache_folder(), 0))
    assert bare.artifact.kind == "weights" and builder.base.artifact.kind == "cells"
    first, second = (builder.network(bare).state_dict() for _ in range(2))
    assert same(first, second)
    assert first[models.head_names(builder.network(bare))[0]].shape[0] == len(CLASSES)
