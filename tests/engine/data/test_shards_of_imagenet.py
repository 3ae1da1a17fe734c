"""Sets of ImageNet-RIB from a hub's shards: classes by wnid or by their synonyms."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.data import imagenet
from engine.data.kinds.imagenet import Kind, Recipe
from loaders import trees

DATASET = Recipe(name="imagenet_rib", kind="imagenet", sets=[])
NAMES = ["goldfish, Carassius auratus", "n01440764"]  # the second is a tench's


def parquet(file: Path, names: list[str]) -> Path:
    described = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    images = [{"bytes": bytes([i]), "path": f"{i}.JPEG"} for i in range(3)]
    metadata = {"huggingface": json.dumps({"info": {"features": described}})}
    table = pa.table({"image": images, "label": [0, 1, 0]}, metadata=metadata)
    pq.write_table(table, file)
    return file


@pytest.mark.parametrize("name", ["imagenet_val", "imagenet_v2", "imagenet_sketch"])
def test_a_parquet_copy_is_the_set_by_its_class_names(tmp_path, name):
    listing = Kind(DATASET, name).listing(
        tmp_path, parquet(tmp_path / "0.parquet", NAMES), partial=True
    )
    shown = [(item.key, item.label, trees.read(item.payload)) for item in listing.items]
    assert shown == [
        ("n01440764/1.JPEG", 0, b"\1"),
        ("n01443537/0.JPEG", 1, b"\0"),
        ("n01443537/2.JPEG", 1, b"\2"),
    ]
    assert listing.classes == imagenet.wnids()
    with pytest.raises(ValueError, match=r"1 folders are not classes of .*: a fish"):
        Kind(DATASET, name).listing(tmp_path, parquet(tmp_path / "1.parquet", ["a fish", NAMES[1]]))
