"""ImageNet's sets: every layout gives the same items, classes and source images, and what is wrong,
short or damaged in a download is named."""

import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import imagenet
from engine.data.kinds.imagenet import Kind
from helpers import imagenet_trees as trees
from helpers.imagenet_trees import RIB, read
from helpers.tarballs import tarball
from loaders.benchmarks import imagenet_c, objectnet
from loaders.benchmarks.imagenet import LABEL_FILES, faults, wnids_of_kit
from loaders.pack import Item
from loaders.sampling import balanced
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


def test_objectnet_corrected_and_released(tmp_path):
    source = trees.objectnet(tmp_path)
    listing = read("objectnet", source)
    by_folder = {key.split("/")[0]: wnids for wnids, key in named(listing)}
    assert by_folder == {folder: "+".join(wnids) for folder, wnids in trees.OBJECTS.items()}
    assert len(listing.classes) == 4 and len(listing.items) == 8
    released = read("objectnet", source / "objectnet-1.0", objectnet="released")
    by_folder = {key.split("/")[0]: wnid for wnid, key in named(released)}
    first = {folder: wnids[0] for folder, wnids in trees.OBJECTS.items()}
    assert by_folder == first | {"weight_scale": first["still_camera"]}
    assert len(released.classes) == 3 and len(released.items) == 8


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
def test_released_takes_the_first_name_between_commas(classes, place):
    """Of all objects that are several classes this moves the wheel alone, and none of the rest."""
    names = imagenet.wnids_by_name()
    assert trees.PLACES[objectnet.imagenet_class(classes, names, "released")] == place
    wnids = [names[name] for name in classes.split("; ")]
    assert objectnet.imagenet_class(classes, names, "corrected").split("+") == wnids


def test_released_leaves_objects_of_one_class_alone():
    names = imagenet.wnids_by_name()
    assert len(names) == 998, "cranes are birds and machines"
    for name, wnid in names.items():
        assert objectnet.imagenet_class(name, names, "released") == wnid


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
    drawn = balanced(parts, labels, count, seed)
    assert drawn == sorted({*drawn}) and len(drawn) == count
    assert drawn == balanced(parts, labels, count, seed)
    by_part, by_label = Counter(parts[i] for i in drawn), Counter(labels[i] for i in drawn)
    for several in (by_part, by_label, Counter((parts[i], labels[i]) for i in drawn)):
        assert max(several.values()) - min(several.values()) <= 1
    assert len(by_label) == min(count, 4) and len(by_part) == min(count, 6)


@given(st.sets(st.integers(0, 71), min_size=1), st.integers(0, 2), st.data())
def test_a_drawn_part_of_an_incomplete_set_has_its_size(present, seed, data):
    parts = ["abcdef"[i // 12] for i in sorted(present)]
    labels = [i % 4 for i in sorted(present)]
    count = data.draw(st.integers(1, len(present)))
    drawn = balanced(parts, labels, count, seed)
    assert len(drawn) == count and drawn == sorted({*drawn} & {*range(len(present))})


def test_fingerprint_follows_the_files(tmp_path):
    source = trees.by_wnid(tmp_path / "a")
    before = read("imagenet_a", source).fingerprint
    assert read("imagenet_a", source).fingerprint == before
    trees.draw(source / trees.WNIDS[0] / "1.jpg", [77])
    assert read("imagenet_a", source).fingerprint != before


def test_published_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"1000 of 1000 classes have not 50 images: n01440764 \(0"):
        Kind(RIB, "imagenet_val").listing(tmp_path, trees.validation(tmp_path))
    items = [Item(i // 2, "", str(i), None) for i in range(6)]
    assert faults(items, "abc", 6, 2) == []
    assert faults(items[:5], "abc", 5) == []


def test_a_small_part_of_a_whole_set_is_no_shortfall(tmp_path, monkeypatch):
    source = trees.corrupted(tmp_path)
    drawn = dataclasses.replace(RIB, subsample="20")
    monkeypatch.setattr(imagenet_c, "PER_PART", 2)
    other = dataclasses.replace(drawn, seed=1)
    first, second = (
        Kind(each, "imagenet_c").listing(tmp_path, source).items for each in (drawn, other)
    )
    assert len(first) == len(second) == 20 and first != second
    (source / "weather" / "fog" / "3" / trees.WNIDS[0] / "ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(ValueError, match=r"1 of 75 parts have not 2 images: fog/3 \(1\)"):
        Kind(drawn, "imagenet_c").listing(tmp_path, source)


def _objectnet_mapping(folder: Path, file: int, **changes: str) -> Path:
    source = trees.objectnet(folder)
    path = source / "objectnet-1.0" / "mappings" / objectnet.MAPPINGS[file]
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return source


def test_what_is_wrong_with_a_tree_is_named(tmp_path):
    def fails(name: str, source: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read(name, source)

    good = trees.by_wnid(tmp_path / "good")
    fails("imagenet_a", tmp_path / "gone", "gone is neither a folder nor a .tar")
    (tmp_path / "empty").mkdir()
    fails("imagenet_a", tmp_path / "empty", "empty has no images; give the folder or .tar of")
    fails("imagenet_a", tmp_path / "x.tar.gz", "x.tar.gz is compressed")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    fails("imagenet_a", tmp_path / "bad.tar", "bad.tar is damaged or no .tar")
    fails(
        "imagenet_a",
        trees.version_2(tmp_path / "2"),
        rf"of imagenet_a: \d+ \(.* are {trees.WNIDS[0][:3]}.* another dataset",
    )
    trees.draw(tmp_path / "over" / "1000" / "1.jpeg", [0])
    fails("imagenet_v2", tmp_path / "over", r"imagenet_v2: 1000 \(.* are 0, 1, 2 and 997 more")
    trees.draw(tmp_path / "n" / trees.WNIDS[0] / "deeper" / "1.jpg", [0])
    fails("imagenet_a", tmp_path / "n", r"not classes of imagenet_a: deeper \(n\d+/deeper/1.jpg\)")
    trees.by_wnid(tmp_path / "two" / "one", copies=1)
    trees.by_wnid(tmp_path / "two" / "other", copies=1)
    fails("imagenet_a", tmp_path / "two", "more than one dataset: one/n.*other/n")
    fails("imagenet_c", good, "has no images <corruption>/<severity>/<wnid>")
    trees.draw(tmp_path / "c" / "fog" / "6" / trees.WNIDS[0] / "1.JPEG", [0])
    fails("imagenet_c", tmp_path / "c", "fog/6/n.*is not <corruption>/<1 to 5>")
    fails("objectnet", good, "has no mappings/ folder")
    crane = _objectnet_mapping(tmp_path / "o1", 1, Banana="crane")  # two classes have this name
    fails("objectnet", crane, "1k.json: ImageNet-1K has no class crane")
    unheard = _objectnet_mapping(tmp_path / "o2", 1)
    trees.draw(unheard / "objectnet-1.0/images/unheard/1.png", [0])
    fails("objectnet", unheard, "does not name these folders: unheard")
    (unheard / "objectnet-1.0/mappings" / objectnet.MAPPINGS[0]).write_text("[")
    fails("objectnet", unheard, "folder_to_objectnet_label.json is damaged")
    (unheard / "objectnet-1.0/mappings" / objectnet.MAPPINGS[0]).unlink()
    fails("objectnet", unheard, "folder_to_objectnet_label.json is missing; unpack")
    shared = _objectnet_mapping(tmp_path / "o3", 1, Banana="reflex camera; banana")
    fails("objectnet", shared, r"classes n\d+\+n\d+ and .* share the output n04069434")
    kit = tarball(tmp_path / "kit.tar.gz", {"meta.mat": b""})
    with pytest.raises(ValueError, match=r"kit\.tar\.gz is not ImageNet's development kit"):
        wnids_of_kit(kit)


def test_flat_folder_needs_labels_of_every_image(tmp_path):
    source = trees.flat(tmp_path / "f", "LOC_val_solution.csv")
    labels = source / "LOC_val_solution.csv"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match=r"the labels file lacks ILSVRC2012_val_00000001.JPEG"):
        read("imagenet_val", source)
    endless = b"ImageId,PredictionString\n" + b"x" * 200_000
    for damaged in (b"a,b\n1,2\n", b"\xff", endless):
        labels.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"LOC_val_solution.csv is damaged \("):
            read("imagenet_val", source)
    os.truncate(labels, 1 << 40)  # sparse
    with pytest.raises(
        ValueError, match=r"LOC_val_solution.csv has [0-9,]+ bytes, almost all a hole"
    ):
        read("imagenet_val", source)
    labels.unlink()
    with pytest.raises(ValueError, match=r"flat and has no labels file.*ground_truth.txt"):
        read("imagenet_val", source)


def test_duplicates_are_named(tmp_path):
    source = trees.by_wnid(tmp_path / "a")
    val = trees.validation(tmp_path / "v") / "val"
    name, (first, second) = "ILSVRC2012_val_00000001.JPEG", trees.WNIDS[:2]
    for duplicate in (val / second / name, val / first / name.replace("JPEG", "jpg")):
        shutil.copy(val / first / name, duplicate)
        with pytest.raises(ValueError, match="are the same image"):
            read("imagenet_val", val)
        duplicate.unlink()
    for copy in ("one", "two"):
        trees.archive(source, tmp_path / f"{copy}.tar")
    for folder in (source, tmp_path / "v"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"one.tar and .* are the same image"):
        read("imagenet_a", tmp_path)


@pytest.mark.parametrize("archived", [False, True])
def test_a_name_that_no_manifest_holds_is_named(tmp_path, archived):
    source = trees.by_wnid(tmp_path / "a")
    (source / trees.WNIDS[0] / "1.jpg").rename(source / trees.WNIDS[0] / os.fsdecode(b"\xff.jpg"))
    if archived:
        source = trees.archive(source, tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"a.*: the name '.*udcff.jpg' is not UTF-8; rename it"):
        read("imagenet_a", source)


def test_cut_archive_is_named_where_an_image_ends_early(tmp_path):
    path = trees.archive(trees.by_wnid(tmp_path / "a"), tmp_path / "a.tar")
    last = read("imagenet_a", path).items[-1].payload
    path.write_bytes(path.read_bytes()[: last.offset + last.size - 5])
    with pytest.raises(ValueError, match="ends inside this image"):
        open_image(last)


def test_a_damaged_archive_that_tarfile_takes_for_whole_is_named(tmp_path):
    path = trees.archive(trees.by_wnid(tmp_path / "a"), tmp_path / "bad.tar")
    good = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    inner = tarball(tmp_path / "outer", {"n1.tar": b"no archive".ljust(2000), "n2/1.jpg": b""})
    (tmp_path / "a" / "link").symlink_to("elsewhere")
    linked = trees.archive(tmp_path / "a", tmp_path / "linked.tar")
    with pytest.raises(ValueError, match=r"linked\.tar: link is a link; unpack the archive"):
        read("imagenet_a", linked)
    (tmp_path / "h" / "n1").mkdir(parents=True)
    os.truncate(os.open(tmp_path / "h" / "n1" / "a.bmp", os.O_CREAT | os.O_RDWR), 1 << 20)
    holes = tmp_path / "holes.tar"
    subprocess.run(["tar", "-S", "-C", tmp_path / "h", "-cf", holes, "n1"], check=True)
    with pytest.raises(ValueError, match=r"holes\.tar: n1/a.bmp has holes; unpack the archive"):
        read("imagenet_a", holes)
    for data, name in (
        (good[:third] + b"x" * 512 + good[third + 512 :], "it"),
        (good[: third + 100], "it"),
        (good[:third], "it"),
        (gzip.decompress(inner.read_bytes()), "n1.tar"),
    ):
        path.write_bytes(data)
        message = rf"bad\.tar is damaged or no \.tar archive \({name} is truncated"
        with pytest.raises(ValueError, match=message):
            read("imagenet_a", path)
