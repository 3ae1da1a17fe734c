"""The benchmarks of `recipes/datasets` read drawn trees in their published layouts."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from engine.campaigns.make_plan import make_plan
from engine.cost import estimate, work
from engine.data import imagenet
from engine.data.kinds import kind_of
from engine.data.sets import Sets
from engine.recipe import catalogue, kinds
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe, recipe_of_sections
from engine.recipe.schema import Recipe
from helpers import grids
from loaders import trees

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
    return recipe_of_sections("vit_tiny_random", name, parsed(given))


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
    published = [own["images"] for own in of.dataset.per_dataset.values()]
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
    assert work.size_of(of, "quickdraw") == (6, 2, 2), "those there, not the published ones"
    quickdraw = Sets(of, CPU, tmp_path)["quickdraw"]
    assert quickdraw.pack.classes == ("0", "1")
    assert [len(quickdraw.split(each)) for each in ("train", "holdout")] == [4, 2]


def test_domainnet_126(tmp_path):
    root = tmp_path / "domainnet-126"
    for domain in ("real", "clipart", "painting", "sketch"):
        images = [f"{domain}/{name}/{domain}_00{i}.jpg" for name in ("rabbit", "ant") for i in "12"]
        for path in images:
            draw(root / path)
        lines = [f"{path} {91 if 'rabbit' in path else 2}" for path in images]
        (root / f"{domain}_list.txt").write_text("\n".join(lines), encoding="utf-8")
    of = resolved("domainnet_126", root)
    sets = Sets(of, CPU, tmp_path)
    assert all(sets[name].pack.classes == ("2", "91") for name in of.dataset.known)
    published: dict[str, Any] = of.dataset.per_dataset
    assert sum(own["images"] for own in published.values()) == 142_334


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
    published: dict[str, Any] = of.dataset.per_dataset
    assert sum(own["images"] for own in published.values()) == 203_029


def test_fmow(tmp_path):
    """Paths, regions and WILDS' official split are derived from FMoW's own columns."""
    root = tmp_path / "fmow_v1.1"
    rows = [  # FMoW's split, country and time, and WILDS' part
        ("train", "FRA", "2002-03-01T00:00:00Z", "train"),
        ("seq", "FRA", "2002-03-01T00:00:00Z", ""),  # its number is an image's all the same
        ("val", "FRA", "2012-12-31T23:59:59Z", "id_val"),
        ("test", "ATA", "2005-03-01T00:00:00Z", "id_test"),
        ("train", "FRA", "2013-01-01T00:00:00Z", ""),
        ("val", "USA", "2013-01-01T00:00:00Z", "ood_val"),
        ("test", "USA", "2015-01-01T00:00:00Z", ""),
        ("test", "XXX", "2016-01-01T00:00:00Z", "ood_test"),
    ]
    kinds_of_land = ("airport", "zoo")
    written = []
    for number, (split, country, time, part) in enumerate(row for row in rows for _ in "az"):
        written.append([split, kinds_of_land[number % 2], country, time])
        if part:
            draw(root / "images" / f"rgb_img_{number}.png")
    with (root / "rgb_metadata.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([["split", "category", "country_code", "timestamp"], *written])
    mapping = "name,alpha-3,region\nFrance,FRA,Europe\nUnited States,USA,Americas\n"
    mapping += "Antarctica,ATA,\n"
    (root / "country_code_mapping.csv").write_text(mapping, encoding="utf-8")
    of = resolved("fmow", root)
    sets = Sets(of, CPU, tmp_path)
    assert [len(sets[name].pack) for name in of.dataset.known] == [6, 2, 2]
    trained, held_out = (sets["in_domain"].split(each) for each in ("train", "holdout"))
    parts = sets["in_domain"].pack.columns["part"]
    assert set(parts[trained]) == {"train"} and set(parts[held_out]) == {"id_val", "id_test"}
    assert set(sets["in_domain"].pack.columns["region"]) == {"Europe", "Other"}
    last = sets["later_years_test"].pack
    assert last.keys.tolist() == ["images/rgb_img_14.png", "images/rgb_img_15.png"]
    assert (*map(set, (last.columns["region"], last.columns["year"])),) == ({"Other"}, {"2016"})
    published: dict[str, Any] = of.dataset.per_dataset
    assert sum(own["images"] for own in published.values()) == 141_696


@pytest.mark.parametrize("number", [10, 100])
def test_cifar_c(tmp_path, number):
    photos = 20
    names = kinds.of_set(recipe_of_sections("vit_tiny_random", f"cifar{number}_c").dataset, "blur")
    labels = np.arange(photos) % 4
    folder = tmp_path / f"CIFAR-{number}-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    given = catalogue.read_recipe(catalogue.ROOT / "sets" / f"cifar{number}_c.yaml")
    assert len(given["corruptions"]) == 15 and len(given["label_names"]) == number
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 256, (5 * photos, 32, 32, 3), dtype=np.uint8)
        for name in given["corruptions"]
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for label in names.label_names:
        draw(tmp_path / f"cifar{number}" / label / "0.png")
    of = resolved(f"cifar{number}_c", tmp_path, "model.interpolation=nearest")
    sets = Sets(of, CPU, tmp_path)
    assert [len(sets[name].pack) for name in of.dataset.sets] == [300, 400, 400, 400]
    pack = sets["digital"].pack
    (place,) = np.flatnonzero(pack.keys == "contrast/3/00007")
    assert np.array_equal(pack.pixels([place])[0], arrays["contrast"][2 * photos + 7])
    assert pack.classes[pack.labels[place]] == names.label_names[3]
    held_out = [set(sets[name].pack.sources[sets[name].holdout]) for name in of.dataset.sets]
    assert held_out[0] and held_out.count(held_out[0]) == 4, "a photo is held out of all families"
    assert set(sets["noise"].group) >= {"shot_noise/5", "impulse_noise/1"}


DAMAGES = [  # of the text that begins a file; NumPy raises another error for each
    (b"8, 3)", b"8, 3o"),
    (b"'|u1'", b"'|01'"),
    (b"(10, 8", b"(10,-8"),
    (b"e, 'shape'", b"e,B'shape'"),
]


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        *(("fog", damage, r"fog\.npy is not an array that can be read") for damage in DAMAGES),
        ("labels", np.zeros(6, np.uint8), r"labels\.npy has uint8 \[6\], not whole numbers of 5"),
        ("labels", np.arange(10) // 2, r"labels\.npy differs between severities"),
        ("labels", np.full(10, 10), r"labels\.npy has labels from 10 to 10, but .* has 10 names"),
        ("fog", np.zeros((10, 32, 32), np.uint8), r"fog\.npy has uint8 \[10, 32, 32\], not uint8"),
        ("fog", np.zeros((9, 8, 8, 3), np.uint8), r"not uint8 \[10, height, width, 3\]"),
        ("fog", np.array([{}] * 10, object), r"fog\.npy is not an array that can be read"),
        ("fog", None, r"fog\.npy is not an array that can be read .*No such file"),
    ],
)
def test_an_array_of_another_form_is_named(tmp_path, file, array, message):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.zeros(10, np.uint8))
    np.save(folder / "fog.npy", np.zeros((10, 8, 8, 3), np.uint8))
    if array is None:
        (folder / f"{file}.npy").unlink()
    elif isinstance(array, tuple):
        written = (folder / f"{file}.npy").read_bytes()
        (folder / f"{file}.npy").write_bytes(written.replace(*array))
    else:
        np.save(folder / f"{file}.npy", array, allow_pickle=array.dtype == object)
    of = resolved("cifar10_c", tmp_path, "dataset.per_dataset.weather.corruptions=[fog]")
    with pytest.raises(ValueError, match=message):
        kind_of(of.dataset, "weather").listing(tmp_path)


def test_cifar_c_has_the_images_of_the_chosen_arrays(tmp_path):
    of = resolved("cifar10_c", tmp_path, "dataset.per_dataset.noise.severities=[5]")
    kinds_of = [kind_of(of.dataset, name) for name in of.dataset.sets]
    assert [kind.counts()[0] for kind in kinds_of] == [30_000, 200_000, 200_000, 200_000]
    with pytest.raises(ValueError, match=r"labels\.npy is not an array that can be read"):
        kinds_of[0].needs_command()  # before a campaign starts


def beside_imagenet_rib(folder: Path, name: str, sets: str, own: str) -> Recipe:
    file = folder / f"{name}.yaml"
    file.write_text(
        f"extends: imagenet_rib\ndataset:\n  extends: imagenet_rib\n  {sets}\n"
        f"  per_dataset: {{{name}: {{extends: {name}, {own}}}}}\n",
        encoding="utf-8",
    )
    words = [f"model.arch={grids.VIT}", f"model.image_size={grids.SIZE}", f"runs={folder}/runs"]
    return load_recipe(str(file), parsed(words))


def test_imagenet_x(tmp_path):
    """The lines of the published annotations name classes by number and images of upstream."""
    (tmp_path / "val").mkdir()
    given = catalogue.read_recipe(catalogue.ROOT / "sets" / "imagenet_x.yaml")
    lines = []
    for number in range(4):
        name = f"ILSVRC2012_val_0000000{number}.JPEG"
        draw(tmp_path / "val" / name)
        factors = {factor: int(factor == "pose" and number > 1) for factor in given["columns"]}
        line = {"file_name": name, "class": 762 - number, **factors, "one_word": "", "style": 0}
        lines.append(json.dumps(line))
    annotations = tmp_path / "val" / "imagenet_x_val_multi_factor.jsonl"
    annotations.write_text("\n".join(lines), encoding="utf-8")
    of = beside_imagenet_rib(tmp_path, "imagenet_x", "evaluate_on: [imagenet_x]", "root: val")
    labelled = Sets(of, CPU, tmp_path, given_classes=imagenet.wnids())["imagenet_x"]
    assert labelled.labels.tolist() == [762, 761, 760, 759]
    assert labelled.columns["pose"].tolist() == ["0", "0", "1", "1"] and len(labelled.columns) == 16
    assert labelled.pack.sources[1] == "ILSVRC2012_val_00000001", "as in the validation set's pack"
    annotations.write_text("\n".join([*lines[:3], lines[3][:-9]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"multi_factor\.jsonl, line 4 is not a JSON object"):
        kind_of(of.dataset, "imagenet_x").listing(tmp_path)


def test_imagenet_d(tmp_path):
    data = tmp_path / "data" / "imagenet_d"
    for attribute in ("background", "texture", "material"):
        for label in ("alarm_clock", "backpack"):
            draw(data / attribute / label / "0.png")
    (data / "questions").mkdir()
    (data / "questions" / "texture.csv").write_text("", encoding="utf-8")
    of = beside_imagenet_rib(tmp_path, "imagenet_d", "evaluate_on: [imagenet_d]", "root: data")
    labelled = Sets(of, CPU, tmp_path, given_classes=imagenet.wnids())["imagenet_d"]
    assert set(labelled.columns["attribute"]) == {"background", "texture", "material"}
    assert (
        labelled.members.tolist() == [[409, 530], [414, 414]] and labelled.class_reduction == "max"
    )


PLANNED = {  # published images, classes and, with a published split, held-out images of upstream
    "camelyon17": (335_996, 2, 33_560),
    "cifar100_c": (50_000, 100, 0),
    "cifar10_c": (50_000, 10, 0),
    "domainnet": (172_947, 345, 52_041),
    "domainnet_126": (69_622, 126, 0),
    "domainnet_hub": (172_947, 345, 52_041),
    "fmow": (99_673, 62, 22_810),
    "iwildcam": (145_277, 182, 15_468),
    "office_home": (4357, 65, 0),
    "pacs": (2048, 7, 0),
    "pacs_hub": (2048, 7, 0),
    "vlcs": (3376, 5, 0),
    "waterbirds": (5994, 2, 1199),
}


@pytest.mark.parametrize("name", PLANNED)
def test_a_campaign_is_planned_before_its_data_is_there(tmp_path, name):
    images, classes, held_out = PLANNED[name]
    file = tmp_path / "c.yaml"
    file.write_text(f"extends: emoji\ndataset: {name}\n", encoding="utf-8")
    words = [f"runs={tmp_path}/runs", f"dataset.root={tmp_path}/none", "model=vit_tiny_random"]
    plan = make_plan(str(file), parsed(words))
    upstream = plan.recipe.dataset.head_classes
    size = work.size_of(plan.recipe, upstream)
    assert size[:2] == (images, classes)
    assert round(size.held_out) == (held_out or round(images / 4))
    trained_on = work.trained_on(plan.recipe, [size])
    assert trained_on == round(images - size.held_out)
    planned = estimate.campaign_cost(plan.recipes, len(plan.rows))
    assert planned.images[upstream] == images


def test_a_split_of_unknown_size_is_planned_with_the_datasets_holdout(tmp_path):
    of = resolved("fmow", tmp_path / "none", "dataset.per_dataset.in_domain.split.held_out=0")
    assert work.size_of(of, "in_domain") == (99_673, 62, 99_673 / 4)


def test_laion_c_beside_imagenet_rib(tmp_path):
    data = tmp_path / "data"
    for distortion in ("glitched", "mosaic"):
        for level in (1, 5):
            for label in ("dog", "cat"):
                place = data / "laion_c" / distortion / f"intensity_level_{level}" / label
                draw(place / "0.png")
    of = beside_imagenet_rib(tmp_path, "laion_c", "sets: [imagenet_a, laion_c]", "root: data")
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
    assert laion.class_reduction == "mean" and laion.members.shape == (2, 109)
    assert len(set(laion.pack.sources)) == 2, "the distortions of a photo"
    of_sets = {"cifar100_c", "cifar10_c", "imagenet_d", "imagenet_x", "laion_c"}
    assert {path.stem for path in (catalogue.ROOT / "sets").glob("*.yaml")} == of_sets


def parquet(file: Path, *names: str) -> Path:
    described = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    images = [{"bytes": bytes([i]), "path": f"{i}.JPEG"} for i in range(3)]
    metadata = {"huggingface": json.dumps({"info": {"features": described}})}
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}, metadata=metadata), file)
    return file


@pytest.mark.parametrize("name", ["imagenet_val", "imagenet_v2", "imagenet_sketch"])
def test_a_hubs_copy_of_an_imagenet_set_names_classes_by_wnid_or_by_synonyms(tmp_path, name):
    kind = kind_of(recipe_of_sections("vit_tiny_random", "imagenet_rib").dataset, name)
    file = parquet(tmp_path / "0.parquet", "goldfish, Carassius auratus", "n01440764")  # a tench
    listing = kind.listing(tmp_path, file, partial=True)
    shown = [(item.key, item.label, trees.read_image(item.payload)) for item in listing.items]
    assert shown == [
        ("n01440764/1.JPEG", 0, b"\1"),
        ("n01443537/0.JPEG", 1, b"\0"),
        ("n01443537/2.JPEG", 1, b"\2"),
    ]
    assert listing.classes == imagenet.wnids()
    with pytest.raises(ValueError, match=r"1 folders are not classes of .*: a fish"):
        kind.listing(tmp_path, parquet(tmp_path / "1.parquet", "a fish", "n01440764"))
