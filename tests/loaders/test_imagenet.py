"""ImageNet's sets: every layout gives the same items, classes and source images."""

import shutil
import tarfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import imagenet
from helpers import imagenet_trees as trees
from helpers.imagenet_trees import read
from loaders.benchmarks import imagenet_c, objectnet
from loaders.benchmarks.imagenet import LABEL_FILES
from loaders.trees import Listing, open_image


def named(listing: Listing) -> list[tuple[str, str]]:
    """Class and key of every item."""
    return [(listing.classes[item.label], item.key) for item in listing.items]


def require_equal(actual: Listing, expected: Listing) -> None:
    """The same six images, pixel for pixel."""
    assert named(actual) == named(expected) and len(actual.items) == 6
    for item, other in zip(actual.items, expected.items, strict=True):
        assert open_image(item.payload).tobytes() == open_image(other.payload).tobytes()


def test_every_layout_of_the_validation_set_gives_the_same_items(tmp_path):
    expected = read("imagenet_val", trees.validation(tmp_path / "folders"))
    assert expected.items[0].source == "ILSVRC2012_val_00000001"
    assert tuple(expected.classes) == imagenet.wnids()
    csv, synsets = LABEL_FILES
    kaggle = trees.flat(tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC", csv)
    (kaggle / csv).rename(tmp_path / "kaggle" / csv)
    with_tar = trees.flat(tmp_path / "tar", synsets)
    tar = trees.archive(with_tar / "val", with_tar / "ILSVRC2012_img_val.tar")
    shutil.rmtree(with_tar / "val")
    for source in (
        tmp_path / "folders" / "val",
        trees.archive(tmp_path / "folders", tmp_path / "val.tar"),
        trees.flat(tmp_path / "csv", csv),
        trees.flat(tmp_path / "synsets", synsets),
        tmp_path / "kaggle",
        with_tar,
        tar,
    ):
        listing = read("imagenet_val", source)
        require_equal(listing, expected)
        assert [item.source for item in listing.items] == [item.source for item in expected.items]


@pytest.mark.parametrize("make", [trees.by_wnid, trees.version_2])
def test_a_set_is_the_same_from_its_archive(tmp_path, make):
    name = "imagenet_v2" if make == trees.version_2 else "imagenet_a"
    expected = read(name, make(tmp_path / name))
    listing = read(name, trees.archive(tmp_path / name, tmp_path / "a.tar"))
    require_equal(listing, expected)
    assert listing.items[0].payload.path == str(tmp_path / "a.tar")


def test_training_set_as_an_archive_of_archives(tmp_path):
    folder = trees.by_wnid(tmp_path / "d" / "train", "x_{i}.JPEG")
    expected = read("imagenet_train", tmp_path / "d")
    path = trees.archive(folder, tmp_path / "t.tar", nested=True)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")  # to an archive a class
    for source in (path, tmp_path / "unpacked"):
        require_equal(read("imagenet_train", source), expected)


def test_version_2_counts_classes_by_number_not_by_text(tmp_path):
    listing = read("imagenet_v2", trees.version_2(tmp_path))
    assert {wnid for wnid, _ in named(listing)} == set(trees.WNIDS)
    for wnid, key in named(listing):
        assert key.split("/")[1][0] == "abc"[trees.WNIDS.index(wnid)]
    as_text = sorted(map(str, range(1000)))
    assert any(as_text.index(str(trees.PLACES[w])) != trees.PLACES[w] for w in trees.WNIDS)


def test_objectnet_corrected_and_paper(tmp_path):
    source = trees.objectnet(tmp_path)
    listing = read("objectnet", source)
    by_folder = {key.split("/")[0]: wnids for wnids, key in named(listing)}
    assert by_folder == {folder: "+".join(wnids) for folder, wnids in trees.OBJECTS.items()}
    assert len(listing.classes) == 4 and len(listing.items) == 8
    paper = read("objectnet", source / "objectnet-1.0", objectnet="paper")
    by_folder = {key.split("/")[0]: wnid for wnid, key in named(paper)}
    first = {folder: wnids[0] for folder, wnids in trees.OBJECTS.items()}
    assert by_folder == first | {"weight_scale": first["still_camera"]}
    assert len(paper.classes) == 3 and len(paper.items) == 8


BICYCLES = "mountain bike, all-terrain bike, off-roader; bicycle-built-for-two, tandem bicycle"


@pytest.mark.parametrize(
    ("classes", "place"),
    [
        ("analog clock; digital clock", 409),
        (f"{BICYCLES}, tandem", 671),
        ("football helmet; crash helmet", 560),
        ("ballpoint, ballpoint pen, ballpen, Biro; quill, quill pen; fountain pen", 418),
        ("Polaroid camera, Polaroid Land camera; reflex camera", 732),
        ("bow tie, bow-tie, bowtie; Windsor tie", 457),
        ("car wheel; paddlewheel, paddle wheel", 694),
    ],
)
def test_paper_takes_the_first_name_between_commas(classes, place):
    """Of all objects that are several classes this moves the wheel alone, and none of the rest."""
    names = imagenet.wnids_by_name()
    assert trees.PLACES[objectnet.imagenet_class(classes, names, "paper")] == place
    wnids = [names[name] for name in classes.split("; ")]
    assert objectnet.imagenet_class(classes, names, "corrected").split("+") == wnids


def test_paper_leaves_objects_of_one_class_alone():
    names = imagenet.wnids_by_name()
    assert len(names) == 998, "cranes are birds and machines"
    for name, wnid in names.items():
        assert objectnet.imagenet_class(name, names, "paper") == wnid


def test_corruptions_with_and_without_groups_and_from_archives(tmp_path):
    expected = read("imagenet_c", trees.corrupted(tmp_path / "grouped"))
    plain = trees.corrupted(tmp_path / "plain", grouped=False)
    trees.draw(plain / "speckle_noise" / "1" / trees.WNIDS[0] / "x.JPEG", [9])
    tars = tmp_path / "tars"
    tars.mkdir()
    for group in imagenet_c.GROUPS:
        trees.archive(tmp_path / "grouped" / group, tars / f"{group}.tar")
    for source in (plain, tars):
        assert named(read("imagenet_c", source)) == named(expected)
    assert len(expected.items) == 150 and expected.columns == ("corruption", "severity")
    parts = Counter(map(imagenet_c.part_of, expected.items))
    assert parts == dict.fromkeys(imagenet_c.PARTS, 2)
    sources = {item.source for item in expected.items}
    assert sources == {"ILSVRC2012_val_00000001", "ILSVRC2012_val_00000003"}
    assert read("imagenet_c", plain).left_out == (f"speckle_noise/1/{trees.WNIDS[0]}/x.JPEG",)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6 * 4 * 3), st.integers(0, 3))
def test_a_drawn_part_is_balanced_and_seeded(count, seed):
    parts = [part for part in "abcdef" for _ in range(4 * 3)]
    labels = [label for _ in "abcdef" for label in range(4) for _ in range(3)]
    drawn = imagenet_c.balanced(parts, labels, count, seed)
    assert drawn == sorted({*drawn}) and len(drawn) == count
    assert drawn == imagenet_c.balanced(parts, labels, count, seed)
    by_part, by_label = Counter(parts[i] for i in drawn), Counter(labels[i] for i in drawn)
    for several in (by_part, by_label, Counter((parts[i], labels[i]) for i in drawn)):
        assert max(several.values()) - min(several.values()) <= 1
    assert len(by_label) == min(count, 4) and len(by_part) == min(count, 6)


@given(st.sets(st.integers(0, 71), min_size=1), st.integers(0, 2), st.data())
def test_a_drawn_part_of_an_incomplete_set_has_its_size(present, seed, data):
    parts = ["abcdef"[i // 12] for i in sorted(present)]
    labels = [i % 4 for i in sorted(present)]
    count = data.draw(st.integers(1, len(present)))
    drawn = imagenet_c.balanced(parts, labels, count, seed)
    assert len(drawn) == count and drawn == sorted({*drawn} & {*range(len(present))})


def test_fingerprint_follows_the_files(tmp_path):
    source = trees.by_wnid(tmp_path / "a")
    before = read("imagenet_a", source).fingerprint
    assert read("imagenet_a", source).fingerprint == before
    trees.draw(source / trees.WNIDS[0] / "1.jpg", [77])
    assert read("imagenet_a", source).fingerprint != before
