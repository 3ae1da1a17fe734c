"""The benchmarks of `recipes/datasets` read drawn trees in their published layouts."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engine import recipe
from engine.data import imagenet
from engine.data.sets import Sets
from engine.recipe import catalogue, kinds, parsed
from engine.recipe.schema import Recipe
from helpers import grids

CPU = torch.device("cpu")
DOMAINBED = {  # folders of the domains, and two classes
    "pacs": (["art_painting", "cartoon", "photo", "sketch"], ["dog", "elephant"]),
    "vlcs": (["Caltech101", "LabelMe", "SUN09", "VOC2007"], ["bird", "car"]),
    "office_home": (["Art", "Clipart", "Product", "Real World"], ["Alarm_Clock", "Backpack"]),
    "terra_incognita": ([f"location_{i}" for i in (38, 43, 46, 100)], ["bird", "bobcat"]),
}


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (grids.SIZE, grids.SIZE)).save(path)


def resolved(name: str, root: Path, *words: str) -> Recipe:
    model = [f"model.arch={grids.VIT}", f"model.image_size={grids.SIZE}", "model.crop=1.0"]
    given = [*model, f"runs={root.parent / 'runs'}", f"dataset.root={root}", *words]
    return recipe.of_sections("vit_tiny_random", name, parsed(given))


@pytest.mark.parametrize("name", DOMAINBED)
def test_a_benchmark_of_folders(tmp_path, name, caplog):
    domains, classes = DOMAINBED[name]
    for domain in domains:
        for label in classes:
            for number in range(4):
                draw(tmp_path / name / domain / label / f"{number}.jpg")
    of = resolved(name, tmp_path / name)
    sets = Sets(of, CPU, tmp_path)
    assert sorted(of.dataset.known) == sorted(domains)
    assert all(list(sets[domain].pack.classes) == classes for domain in domains)
    published = [own["images"] for own in of.dataset.own.values()]
    totals = {"pacs": 9991, "vlcs": 10729, "office_home": 15588, "terra_incognita": 0}
    assert sum(published) == totals[name]
    assert caplog.text.count("is incomplete: 8 images, not") == len(published)


def test_domainnet(tmp_path):
    root = tmp_path / "domainnet"
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    for domain in domains:
        images = [f"{domain}/{name}/{domain}_{name}_{i}.jpg" for name in "ab" for i in range(3)]
        lines = [f"{path} {'ab'.index(path.split('/')[1])}" for path in images]
        for path in images:
            draw(root / path)
        train = "\n".join(lines[:2] + lines[3:5]) + "\n"
        (root / f"{domain}_train.txt").write_text(train, encoding="utf-8")
        (root / f"{domain}_test.txt").write_text(f"{lines[2]}\n{lines[5]}\n", encoding="utf-8")
    of = resolved("domainnet", root)
    assert sorted(of.dataset.known) == domains
    quickdraw = Sets(of, CPU, tmp_path)["quickdraw"]
    assert quickdraw.pack.classes == ("0", "1")
    assert [len(quickdraw.split(each)) for each in ("train", "holdout")] == [4, 2]


def test_iwildcam(tmp_path):
    rows = []
    for number, split in enumerate(["train", "train", "val", "test", "id_val", "id_test"] * 2):
        rows.append([split, f"{number}.jpg", number // 6, 300 + number % 3, "2013-01-01"])
        draw(tmp_path / "iwildcam_v2.0" / "train" / f"{number}.jpg")
    with (tmp_path / "iwildcam_v2.0" / "metadata.csv").open("w", encoding="utf-8") as file:
        header = ["split", "filename", "y", "location_remapped", "datetime"]
        csv.writer(file).writerows([header, *rows])
    of = resolved("iwildcam", tmp_path / "iwildcam_v2.0" / "train")
    sets = Sets(of, CPU, tmp_path)
    assert [len(sets[name].pack) for name in of.dataset.known] == [8, 2, 2]
    assert [len(sets["in_domain"].split(each)) for each in ("train", "holdout")] == [4, 4]
    cameras = sets["new_cameras_val"].pack.columns["location_remapped"]
    assert cameras.tolist() == ["302", "302"]
    published: dict[str, Any] = of.dataset.own
    assert sum(own["images"] for own in published.values()) == 203_029


def test_laion_c_beside_imagenet_rib(tmp_path):
    data = tmp_path / "data"
    for distortion in ("glitched", "mosaic"):
        for level in (1, 5):
            for label in ("dog", "cat"):
                place = data / "laion_c" / distortion / f"intensity_level_{level}" / label
                draw(place / "0.png")
    file = tmp_path / "both.yaml"
    file.write_text(
        "extends: imagenet_rib\ndataset:\n  extends: imagenet_rib\n"
        "  sets: [imagenet_a, laion_c]\n"
        "  own: {laion_c: {extends: laion_c, root: data}}\n",
        encoding="utf-8",
    )
    words = [f"model.arch={grids.VIT}", f"model.image_size={grids.SIZE}", f"runs={tmp_path}/runs"]
    of = recipe.load(str(file), parsed(words))
    assert [kinds.of_set(of.dataset, name).kind for name in of.dataset.sets] == [
        "imagenet",
        "folder",
    ]
    sets = Sets(of, CPU, tmp_path, given_classes=imagenet.wnids())
    laion = sets["laion_c"]
    assert set(laion.group) == {
        f"{distortion}/intensity_level_{level}"
        for distortion in ("glitched", "mosaic")
        for level in (1, 5)
    }
    assert laion.joined == "mean" and laion.members.shape == (2, 109)
    assert len(set(laion.pack.sources)) == 2, "the distortions of a photo"
    assert {path.stem for path in (catalogue.ROOT / "sets").glob("*.yaml")} == {"laion_c"}
