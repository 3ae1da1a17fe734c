"""Benchmarks of `recipes/datasets` that read the Hub's parquet files, drawn in their layouts."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.data.sets import Sets
from engine.evaluation import passes
from engine.measures import predictions
from engine.recipe.overrides import parsed
from engine.recipe.resolve import recipe_of_sections
from engine.recipe.schema import Recipe
from helpers import grids
from loaders import tables
from loaders.tables import Columns

CPU = torch.device("cpu")
MODEL = [f"model.arch={grids.VIT}", f"model.image_size={grids.SIZE}", "model.crop=1.0"]
Rows = Sequence[tuple[Any, ...]]


def drawn(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (grids.SIZE, grids.SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def parquet(file: Path, names: Sequence[str], rows: Rows, classes: Any = None) -> None:
    """A file of the Hub with a drawn image per row, and the names of columns that have them."""
    described = {name: {"_type": "ClassLabel", "names": of} for name, of in (classes or {}).items()}
    metadata = {"huggingface": json.dumps({"info": {"features": described}})}
    seed = int.from_bytes(file.stem.encode()) % 2**31
    images = [{"bytes": drawn(seed + k), "path": None} for k in range(len(rows))]
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    table = pa.table({"image": pa.array(images, kinds), **columns}, metadata=metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=3)


def resolved(name: str, root: Path, *words: str) -> Recipe:
    given = [*MODEL, f"runs={root.parent / 'runs'}", f"dataset.root={root}", *words]
    return recipe_of_sections("vit_tiny_random", name, parsed(given))


def published(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Numbers of images and of those held out."""
    own = recipe.dataset.per_dataset
    return {n: (o["images"], o.get("split", {}).get("held_out", 0)) for n, o in own.items()}


def test_camelyon17(tmp_path):
    files = ["id_train-00000-of-00002-da7f", "id_train-00001-of-00002-1e75", "id_val-0"]
    for file in [*files, "ood_val-0", "ood_test-0", "unlabeled_train-0"]:
        place = tmp_path / "d" / "data" / f"{file}.parquet"
        parquet(place, ["label"], [(0,), (1,), (0,), (1,)])
    of = resolved("camelyon17", tmp_path / "d")
    sets = Sets(of, CPU, tmp_path)
    assert [len(sets[name].pack) for name in of.dataset.known] == [12, 4, 4]
    of_training = sets["in_domain"]
    assert [len(of_training.split(each)) for each in ("train", "holdout")] == [8, 4]
    assert all(key.startswith("id_val-0") for key in of_training.pack.keys[of_training.holdout])
    assert of_training.pack.classes == ("0", "1")
    assert sum(images for images, _ in published(of).values()) == 455_954, "as in WILDS"


def waterbirds(root: Path, classes: Any = None) -> None:
    groups = [(bird, place) for bird in (0, 1) for place in (0, 1)]
    usual = [group for group in groups if group[0] == group[1]]
    parts = {"train": [*groups, *usual * 4] * 2, "validation": groups * 2, "test": groups * 2}
    for part, rows in parts.items():
        file = root / "data" / f"{part}-00000-of-00001.parquet"
        parquet(file, ["label", "place"], rows, classes)


def test_waterbirds_has_the_accuracy_of_each_bird_and_place(tmp_path, grid):
    waterbirds(tmp_path / "birds")
    words = [*MODEL, f"runs={tmp_path / 'runs'}", f"dataset.root={tmp_path / 'birds'}"]
    words += ["optimizer={name: sgd, lr: 0.02}"]
    words += ["train={epochs: 1, batch_size: 8, warmup_steps: 1}"]
    words += ["dataset=waterbirds", "downstream=train_val", "model=vit_tiny_random", "device=cpu"]
    plan = plan_cell("emoji/fine_tune", parsed([*words, "method=fine_tune"]))
    builder = Builder(plan, CPU, Sets(plan.recipe, CPU, tmp_path))
    cell = builder.build()
    assert [len(builder.target.split(each)) for each in ("train", "holdout")] == [24, 8]
    passes.evaluate(builder, [{cell.name: 1.0}], ["test"], "all")
    answers = passes.predicted(builder, {cell.name: 1.0}, "test", "all")
    images = predictions.read_predictions(answers).to_pandas()
    group = images[f"{predictions.COLUMN}label+place"]
    assert group.value_counts().to_dict() == {"0+0": 2, "0+1": 2, "1+0": 2, "1+1": 2}
    assert (group.str[0].astype(int) == images["label"]).all()
    assert published(plan.recipe) == {"train_val": (5994, 1199), "test": (5794, 0)}


def test_numbers_with_names_are_read_as_names(tmp_path):
    waterbirds(tmp_path / "birds", {"label": ["landbird", "waterbird"], "place": ["land", "water"]})
    pack = Sets(resolved("waterbirds", tmp_path / "birds"), CPU, tmp_path)["test"].pack
    assert pack.classes == ("landbird", "waterbird")
    assert set(pack.columns["label+place"]) == {
        f"{bird}bird+{place}" for bird in ("land", "water") for place in ("land", "water")
    }


HUB = {
    "pacs": ["art_painting", "cartoon", "photo", "sketch"],
    "office_home": ["Art", "Clipart", "Product", "Real World"],
    "domainnet": ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"],
}


@pytest.mark.parametrize("name", HUB)
def test_a_copy_of_all_domains_is_a_dataset_per_domain(tmp_path, name, caplog):
    domains = HUB[name]
    classes: dict[str, Any] = {"label": ["dog", "cat"]}
    is_domainnet = name == "domainnet"
    if is_domainnet:
        classes["domain"] = domains
    values = list(range(len(domains))) if is_domainnet else domains
    rows = [(value, k % 2) for value in values for k in range(4)]
    for part, of_part in (("train", rows), *([("test", rows[::2])] if is_domainnet else [])):
        file = tmp_path / name / "data" / f"{part}-00000-of-00001.parquet"
        parquet(file, ["domain", "label"], of_part, classes)
    of = resolved(f"{name}_hub", tmp_path / name)
    sets = Sets(of, CPU, tmp_path)
    assert sorted(of.dataset.known) == sorted(domains)
    for domain in domains:
        assert len(sets[domain].pack) == (6 if is_domainnet else 4)
        assert sets[domain].pack.classes == ("cat", "dog")
    if is_domainnet:
        assert [len(sets["real"].split(each)) for each in ("train", "holdout")] == [4, 2]
    assert published(of) == published(resolved(name, tmp_path / "none")), "those of the archives"
    assert caplog.text.count("is incomplete") == len(domains)


@pytest.mark.parametrize("name", ["pacs", "vlcs", "office_home", "terra_incognita", "domainnet"])
def test_domainbed_oop_groups_images_by_alignment(tmp_path, name):
    of = resolved(f"{name}_oop", tmp_path / name)
    assert of.dataset.upstream is None
    plain = recipe_of_sections("vit_tiny_random", name).dataset
    assert sorted(of.dataset.known) == sorted(plain.known), "the same domains"
    for domain in of.dataset.known:
        for part, label in (("ip", "dog"), ("ip", "cat"), ("oop", "dog"), ("oop", "cat")):
            place = tmp_path / name / domain / part / label / "0.png"
            place.parent.mkdir(parents=True)
            place.write_bytes(drawn(len(str(place))))
    labelled = Sets(of, CPU, tmp_path)[of.dataset.sets[0]]
    assert sorted(labelled.columns["alignment"]) == ["ip", "ip", "oop", "oop"]
    assert labelled.pack.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        (["lable"], [(0,)], r"0\.parquet has no column 'label' among image, lable"),
        (["label"], [(2,)], r"0\.parquet, row 1: label is 2, but there are 2 names"),
        (["label"], [(-1,)], r"0\.parquet, row 1: label is -1, but there are 2 names"),
        (["label"], [([0],)], r"0\.parquet: label, image\.path must be numbers or texts"),
        (["label", "place"], [(0, "a"), (0, None)], r"0\.parquet, row 2: place is empty"),
    ],
)
def test_a_table_of_images_that_cannot_be_used_is_named(tmp_path, names, rows, message):
    parquet(tmp_path / "0.parquet", names, rows, {"label": ["a", "b"]})
    columns = Columns("image", "label", kept=names[1:])
    with pytest.raises(ValueError, match=message):
        tables.listing(tmp_path, {"": tmp_path / "*.parquet"}, columns)
    with pytest.raises(ValueError, match=r"no \.tar or \.parquet file matches .*none-\*"):
        tables.listing(tmp_path, {"": tmp_path / "none-*.parquet"}, columns)
