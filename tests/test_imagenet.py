"""ImageNet's sets: every layout gives the same items, and what is wrong with one is named."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import imagenet_trees as trees
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.data import imagenet
from engine.schema import DatasetRecipe
from loaders import imagenet_c, objectnet
from loaders.imagenet import Found
from loaders.pack import Item
from loaders.trees import File, Place, files, fingerprint, open_image

RIB = DatasetRecipe(name="imagenet_rib", kind="imagenet", sets=[], subsample="full")


def read(name: str, source: Path, **options: str) -> Found:
    return imagenet.read(dataclasses.replace(RIB, **options), name, source, partial=True)


def named(found: Found) -> list[tuple[str, str]]:
    """Class and key of every item."""
    return [(found.classes[item.label], item.key) for item in found.items]


def pixels(item: Item) -> np.ndarray:
    return np.asarray(open_image(item.payload))


@pytest.mark.parametrize(
    "layout", ["above", "val", "csv", "synsets", "kaggle", "tar", "flat tar", "tar beside labels"]
)
def test_every_layout_of_the_validation_set_gives_the_same_items(
    tmp_path: Path, layout: str
) -> None:
    wanted = read("imagenet_val", trees.validation(tmp_path / "wanted"))
    if layout in ("above", "val"):
        source = trees.validation(tmp_path / "a") / ("val" if layout == "val" else "")
    elif layout == "tar":
        source = trees.archive(trees.validation(tmp_path / "a"), tmp_path / "val.tar")
    elif layout == "kaggle":
        source = tmp_path / "k"
        trees.flat(tmp_path / "k" / "ILSVRC" / "Data" / "CLS-LOC", "LOC_val_solution.csv")
        (source / "ILSVRC/Data/CLS-LOC/LOC_val_solution.csv").rename(
            source / "LOC_val_solution.csv"
        )
    else:
        labels = "LOC_val_solution.csv" if layout == "csv" else imagenet.imagenet.LABEL_FILES[1]
        source = trees.flat(tmp_path / "a", labels)
        if layout in ("flat tar", "tar beside labels"):
            path = trees.archive(source / "val", source / "ILSVRC2012_img_val.tar")
            shutil.rmtree(source / "val")
            source = path if layout == "tar beside labels" else source
    found = read("imagenet_val", source)
    assert named(found) == named(wanted) and len(found.items) == 6
    assert [item.source for item in found.items] == [item.source for item in wanted.items]
    assert found.items[0].source == "ILSVRC2012_val_00000001"
    for one, other in zip(found.items, wanted.items, strict=True):
        assert np.array_equal(pixels(one), pixels(other))
    assert tuple(found.classes) == imagenet.wnids()


@pytest.mark.parametrize(
    "name",
    ["imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_cartoon", "imagenet_drawing"],
)
def test_a_set_is_the_same_from_its_archive(tmp_path: Path, name: str) -> None:
    file = "ILSVRC2012_val_{i:08d}.png" if name == "imagenet_drawing" else "{i}.jpg"
    wanted = read(name, trees.by_wnid(tmp_path / "a" / name, file))
    found = read(name, trees.archive(tmp_path / "a", tmp_path / f"{name}.tar"))
    assert named(found) == named(wanted) and len(found.items) == 6
    assert found.items[0].payload.path == str(tmp_path / f"{name}.tar")
    for a, b in zip(found.items, wanted.items, strict=True):
        assert np.array_equal(pixels(a), pixels(b))


def test_version_2_from_its_archive(tmp_path: Path) -> None:
    wanted = read("imagenet_v2", trees.version_2(tmp_path / "v2"))
    found = read("imagenet_v2", trees.archive(tmp_path / "v2", tmp_path / "v2.tar"))
    assert named(found) == named(wanted)


def test_training_set_as_an_archive_of_archives(tmp_path: Path) -> None:
    folder = trees.by_wnid(tmp_path / "d" / "train", "x_{i}.JPEG")
    wanted = read("imagenet_train", tmp_path / "d")
    path = trees.archive(folder, tmp_path / "t.tar", nested=True)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")  # to an archive a class
    for source in (path, tmp_path / "unpacked"):
        found = read("imagenet_train", source)
        assert named(found) == named(wanted) and len(found.items) == 6
        for a, b in zip(found.items, wanted.items, strict=True):
            assert np.array_equal(pixels(a), pixels(b))


def test_version_2_counts_classes_by_number_not_by_text(tmp_path: Path) -> None:
    found = read("imagenet_v2", trees.version_2(tmp_path))
    assert {wnid for wnid, _ in named(found)} == set(trees.WNIDS)
    for wnid, key in named(found):
        assert key.split("/")[1][0] == "abc"[trees.WNIDS.index(wnid)]
    as_text = sorted(map(str, range(1000)))
    assert any(as_text.index(str(trees.PLACES[w])) != trees.PLACES[w] for w in trees.WNIDS)


@pytest.mark.parametrize(("name", "count"), [("imagenet_a", 200), ("imagenet_r", 200)])
def test_small_sets_have_their_own_classes(tmp_path: Path, name: str, count: int) -> None:
    found = read(name, trees.by_wnid(tmp_path / name))
    assert len(found.classes) == count and set(found.classes) < set(imagenet.wnids())
    assert len(set(imagenet.wnids("a")) & set(imagenet.wnids("r"))) == 86
    assert [found.classes[item.label] for item in found.items] == [
        key.split("/")[0] for _, key in named(found)
    ]
    assert found.items[0].source == f"{name}/{trees.WNIDS[0]}/1"


def test_objectnet_corrected_and_paper(tmp_path: Path) -> None:
    source = trees.objectnet(tmp_path)
    found = read("objectnet", source)
    by_folder = {key.split("/")[0]: wnids for wnids, key in named(found)}
    assert by_folder == {folder: "+".join(wnids) for folder, wnids in trees.OBJECTS.items()}
    assert len(found.classes) == 4 and len(found.items) == 8
    assert np.array_equal(
        np.asarray(objectnet.open_image(found.items[0].payload)),
        np.asarray(trees.picture([3, 0, 0])),
    )
    paper = read("objectnet", source / "objectnet-1.0", objectnet="paper")
    by_folder = {key.split("/")[0]: wnid for wnid, key in named(paper)}
    first = {folder: wnids[0] for folder, wnids in trees.OBJECTS.items()}
    assert by_folder == first | {"weight_scale": first["still_camera"]}
    assert len(paper.classes) == 3 and len(paper.items) == 8


def test_corruptions_with_and_without_groups_and_from_archives(tmp_path: Path) -> None:
    wanted = read("imagenet_c", trees.corrupted(tmp_path / "grouped"))
    plain = trees.corrupted(tmp_path / "plain", grouped=False)
    trees.draw(plain / "speckle_noise" / "1" / trees.WNIDS[0] / "x.JPEG", [9])
    tars = tmp_path / "tars"
    tars.mkdir()
    for group in imagenet_c.GROUPS:
        trees.archive(tmp_path / "grouped" / group, tars / f"{group}.tar")
    for source in (plain, tars):
        assert named(read("imagenet_c", source)) == named(wanted)
    assert len(wanted.items) == 150 and wanted.group_depth == 2
    assert Counter(imagenet_c.part_of(item.key) for item in wanted.items) == dict.fromkeys(
        imagenet_c.PARTS, 2
    )
    assert {item.source for item in wanted.items} == {
        "ILSVRC2012_val_00000001",
        "ILSVRC2012_val_00000003",
    }
    assert read("imagenet_c", plain).left_out == (f"speckle_noise/1/{trees.WNIDS[0]}/x.JPEG",)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6 * 4 * 3), st.integers(0, 3))
def test_a_drawn_part_is_balanced_and_seeded(count: int, seed: int) -> None:
    items = [
        Item(label, "s", f"{part}/1/{label}/{copy}", None)
        for part in "abcdef"
        for label in range(4)
        for copy in range(3)
    ]
    drawn = imagenet_c.draw(items, count, seed)
    assert len(drawn) == count == len({item.key for item in drawn})
    assert drawn == imagenet_c.draw(items, count, seed)
    places = [items.index(item) for item in drawn]
    assert places == sorted(places)
    for several in (
        Counter(item.key[0] for item in drawn),
        Counter(item.label for item in drawn),
        Counter((item.key[0], item.label) for item in drawn),
    ):
        sizes = [*several.values()]
        assert max(sizes) - min(sizes) <= 1
    assert count < 4 or len(Counter(item.label for item in drawn)) == 4
    assert count < 6 or len(Counter(item.key[0] for item in drawn)) == 6


@given(st.sets(st.integers(0, 71), min_size=1), st.integers(0, 2), st.data())
def test_a_drawn_part_of_an_incomplete_set_has_its_size(
    there: set[int], seed: int, data: st.DataObject
) -> None:
    items = [Item(i % 4, "s", f"{'abcdef'[i // 12]}/1/{i % 4}/{i:02}", None) for i in there]
    items.sort(key=lambda item: item.key)
    count = data.draw(st.integers(1, len(items)))
    drawn = imagenet_c.draw(items, count, seed)
    assert len({item.key for item in drawn}) == len(drawn) == count
    assert [items.index(item) for item in drawn] == sorted(items.index(item) for item in drawn)


def test_published_sizes(tmp_path: Path) -> None:
    source = trees.by_wnid(tmp_path / "a")
    with pytest.raises(ValueError, match=r"not the published imagenet_a: 6 images, not 7,500; 197"):
        imagenet.read(RIB, "imagenet_a", source)
    with pytest.raises(ValueError, match=r"1000 of 1000 classes have not 50 images: n01440764 \(0"):
        imagenet.read(RIB, "imagenet_val", trees.validation(tmp_path / "v"))
    with pytest.raises(
        ValueError, match=r"75 of 75 parts have not 50,000 images: gaussian_noise/1"
    ):
        imagenet.read(RIB, "imagenet_c", trees.corrupted(tmp_path / "c"))
    items = [Item(i // 2, "", str(i), None) for i in range(6)]
    assert imagenet.imagenet.faults(items, "abc", 6, 2) == []
    assert imagenet.imagenet.faults(items[:5], "abc", 5) == []
    assert imagenet.imagenet.faults(items, "abc", 5) == ["6 images, not 5"]


def test_a_small_part_of_a_whole_set_is_no_shortfall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trees.corrupted(tmp_path)
    drawn = dataclasses.replace(RIB, subsample="20")
    monkeypatch.setattr(imagenet_c, "PER_PART", 2)
    assert len(imagenet.read(drawn, "imagenet_c", source).items) == 20
    (source / "weather" / "fog" / "3" / trees.WNIDS[0] / "ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(ValueError, match=r"1 of 75 parts have not 2 images: fog/3 \(1\)"):
        imagenet.read(drawn, "imagenet_c", source)


def _objectnet_mapping(folder: Path, file: int, **changes: str) -> Path:
    source = trees.objectnet(folder)
    path = source / "objectnet-1.0" / "mappings" / objectnet.MAPPINGS[file]
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return source


def test_what_is_wrong_with_a_tree_is_named(tmp_path: Path) -> None:
    def fails(name: str, source: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read(name, source)

    good = trees.by_wnid(tmp_path / "good")
    fails("imagenet_q", good, "is no set of ImageNet-RIB; did you mean")
    fails("imagenet_a", tmp_path / "gone", "gone is neither a folder nor a .tar")
    (tmp_path / "empty").mkdir()
    fails("imagenet_a", tmp_path / "empty", "empty holds no images; give the folder or .tar of")
    fails("imagenet_a", tmp_path / "x.tar.gz", "x.tar.gz is compressed")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    fails("imagenet_a", tmp_path / "bad.tar", "bad.tar is damaged or no .tar")
    fails("imagenet_a", trees.version_2(tmp_path / "2"), "are ImageNetV2's: encode imagenet_v2")
    fails("imagenet_v2", good, f"no class of imagenet_v2: {trees.WNIDS[0]}")
    trees.draw(tmp_path / "over" / "1000" / "1.jpeg", [0])
    fails("imagenet_v2", tmp_path / "over", r"imagenet_v2: 1000 \(.*its folders are named 0 to 999")
    foreign = next(wnid for wnid in imagenet.wnids() if wnid not in imagenet.wnids("a"))
    trees.draw(tmp_path / "f" / foreign / "1.jpg", [0])
    fails("imagenet_a", tmp_path / "f", f"{foreign}.*has 200 classes, and these are not among")
    trees.draw(tmp_path / "n" / trees.WNIDS[0] / "deeper" / "1.jpg", [0])
    fails("imagenet_a", tmp_path / "n", r"no class of imagenet_a: deeper \(n\d+/deeper/1.jpg\)")
    trees.by_wnid(tmp_path / "two" / "one", copies=1)
    trees.by_wnid(tmp_path / "two" / "other", copies=1)
    fails("imagenet_a", tmp_path / "two", "more than one set: one/n.*other/n")
    fails("imagenet_c", good, "holds no images as <corruption>/<severity>/<wnid>")
    trees.draw(tmp_path / "c" / "fog" / "6" / trees.WNIDS[0] / "1.JPEG", [0])
    fails("imagenet_c", tmp_path / "c", "fog/6/n.*is not <corruption>/<1 to 5>")
    fails("objectnet", good, "holds no mappings/ folder")
    none = _objectnet_mapping(tmp_path / "o1", 1, Banana="no such thing")
    fails("objectnet", none, "'Banana' is no such thing, which is no class of ImageNet-1K")
    shutil.copytree(none / "objectnet-1.0/images/whisk", none / "objectnet-1.0/images/unheard")
    fails("objectnet", _objectnet_mapping(tmp_path / "o2", 1, Banana="crane"), "is crane, which")
    unheard = _objectnet_mapping(tmp_path / "o3", 1)
    trees.draw(unheard / "objectnet-1.0/images/unheard/1.png", [0])
    fails("objectnet", unheard, "does not name: unheard")
    (unheard / "objectnet-1.0/mappings" / objectnet.MAPPINGS[0]).write_text("[")
    fails("objectnet", unheard, "folder_to_objectnet_label.json cannot be read")


def test_flat_folder_needs_labels_of_every_image(tmp_path: Path) -> None:
    source = trees.flat(tmp_path / "f", "LOC_val_solution.csv")
    labels = source / "LOC_val_solution.csv"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000001.JPEG has no label"):
        read("imagenet_val", source)
    labels.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns ImageId"):
        read("imagenet_val", source)
    labels.unlink()
    with pytest.raises(ValueError, match=r"flat and no labels file.*ground_truth.txt"):
        read("imagenet_val", source)


def test_links_that_loop_or_lead_nowhere_are_named(tmp_path: Path) -> None:
    source = trees.by_wnid(tmp_path / "a")
    (source / trees.WNIDS[0] / "self").symlink_to(source)
    with pytest.raises(ValueError, match="self is a link to a folder that it lies in"):
        read("imagenet_a", source)
    (source / trees.WNIDS[0] / "self").unlink()
    (source / trees.WNIDS[1] / "gone.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"gone.jpg cannot be read \(No such file"):
        read("imagenet_a", source)
    (source / trees.WNIDS[1] / "gone.jpg").unlink()
    (source / trees.WNIDS[1] / "me.jpg").symlink_to(source / trees.WNIDS[1] / "me.jpg")
    with pytest.raises(ValueError, match=r"me.jpg cannot be read"):
        read("imagenet_a", source)
    (source / trees.WNIDS[1] / "me.jpg").unlink()
    os.mkfifo(source / trees.WNIDS[1] / "pipe.jpg")
    with pytest.raises(ValueError, match=r"pipe.jpg is neither a file nor a folder"):
        read("imagenet_a", source)
    (source / trees.WNIDS[1] / "pipe.jpg").unlink()
    elsewhere = tmp_path / "elsewhere"
    (source / trees.WNIDS[2]).rename(elsewhere)
    (source / trees.WNIDS[2]).symlink_to(elsewhere)  # a link to another disk is no fault
    assert len(read("imagenet_a", source).items) == 6


def test_duplicates_and_other_files_are_named(tmp_path: Path) -> None:
    source = trees.by_wnid(tmp_path / "a")
    first, second = (source / wnid for wnid in trees.WNIDS[:2])
    (source / "README.txt").write_text("about")
    (first / "Thumbs.db").write_bytes(b"")
    (first / "._1.jpg").write_bytes(b"")
    found = read("imagenet_a", source)
    assert len(found.items) == 6
    assert {*found.left_out} == {
        "README.txt",
        *(f"{first.name}/{n}" for n in ("Thumbs.db", "._1.jpg")),
    }
    shutil.copy(first / "1.jpg", first / "1.JPEG")
    shutil.copy(first / "1.jpg", first / "1.png")
    twins = (("JPEG", "jpg"), ("jpg", "png"))
    pairs = [f"{first.name}/1.{one} and {first.name}/1.{other}" for one, other in twins]
    fault = f"2 pairs have one name but for the suffix: {', '.join(pairs)}"
    with pytest.raises(ValueError, match=fault):
        imagenet.read(RIB, "imagenet_a", source)
    assert fault in read("imagenet_a", source).faults, "a part may have them"
    (first / "1.JPEG").unlink()
    (first / "1.png").unlink()
    val = trees.validation(tmp_path / "v") / "val"
    name = "ILSVRC2012_val_00000001.JPEG"
    for other in (val / second.name / name, val / first.name / name.replace("JPEG", "jpg")):
        shutil.copy(val / first.name / name, other)
        with pytest.raises(ValueError, match="the same image twice"):
            read("imagenet_val", val)
        other.unlink()


@pytest.mark.parametrize("archived", [False, True])
def test_a_name_that_no_manifest_holds_is_named(tmp_path: Path, archived: bool) -> None:
    source = trees.by_wnid(tmp_path / "a")
    (source / trees.WNIDS[0] / "1.jpg").rename(source / trees.WNIDS[0] / os.fsdecode(b"\xff.jpg"))
    if archived:
        source = trees.archive(source, tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"a.*: the name '.*udcff.jpg' is not UTF-8; rename it"):
        read("imagenet_a", source)


@pytest.mark.parametrize("archived", [False, True])
def test_an_image_that_is_there_twice_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archived: bool
) -> None:
    monkeypatch.setitem(imagenet.SIZES, "imagenet_a", imagenet.Size(6))
    source = trees.by_wnid(tmp_path / "a")
    first, second = (source / wnid for wnid in trees.WNIDS[:2])
    shutil.copy(first / "1.jpg", first / "1 (copy).jpg")
    shutil.copy(first / "1.jpg", second / "other.jpg")  # of another class: no copy
    if archived:
        source = trees.archive(source, tmp_path / "a.tar")
    pair = rf"{first.name}/1 \(copy\).jpg and {first.name}/1.jpg"
    with pytest.raises(ValueError, match=rf"8 images, not 6.*; 1 images are there twice: {pair}"):
        imagenet.read(RIB, "imagenet_a", source)
    monkeypatch.setitem(imagenet.SIZES, "imagenet_a", imagenet.Size(9))
    with pytest.raises(ValueError, match=rf"8 images, not 9.*; 1 images are there twice: {pair}"):
        imagenet.read(RIB, "imagenet_a", source)


def test_one_file_in_two_archives_is_named(tmp_path: Path) -> None:
    folder = trees.corrupted(tmp_path / "c")
    (tmp_path / "tars").mkdir()
    for name in ("one", "two"):
        trees.archive(folder / "blur", tmp_path / "tars" / f"{name}.tar")
    with pytest.raises(ValueError, match=r"one.tar and .* are the same image twice"):
        read("imagenet_c", tmp_path / "tars")


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    source = trees.by_wnid(tmp_path / "a")
    before = read("imagenet_a", source).fingerprint
    assert read("imagenet_a", source).fingerprint == before
    trees.draw(source / trees.WNIDS[0] / "1.jpg", [77])
    assert read("imagenet_a", source).fingerprint != before


def test_cut_archive_is_told_where_an_image_ends_early(tmp_path: Path) -> None:
    path = trees.archive(trees.by_wnid(tmp_path / "a"), tmp_path / "a.tar")
    last = read("imagenet_a", path).items[-1].payload
    path.write_bytes(path.read_bytes()[: last.offset + last.size - 5])
    with pytest.raises(ValueError, match="ends inside this image"):
        open_image(last)
    assert isinstance(last, Place) and Image.open(tmp_path / "a" / trees.WNIDS[0] / "1.jpg")


def damaged(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Archives that tarfile takes for whole ones, and what is said of each."""
    good = trees.archive(trees.by_wnid(tmp_path / "a"), tmp_path / "a.tar").read_bytes()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        entry = tarfile.TarInfo(f"{trees.WNIDS[0]}.tar")
        entry.size = 2000
        archive.addfile(entry, io.BytesIO(b"no archive".ljust(2000)))
    with tarfile.open(tmp_path / "a.tar") as archive:
        third = archive.getmembers()[2].offset
    return {
        "header": (good[:third] + b"x" * 512 + good[third + 512 :], "it does not end as"),
        "cut": (good[: third + 100], "it does not end as"),
        "between": (good[:third], "it does not end as"),
        "inner": (inner.getvalue(), f"{trees.WNIDS[0]}.tar does not end as"),
    }


@pytest.mark.parametrize("kind", ["header", "cut", "between", "inner"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.tar"
    data, message = damaged(tmp_path)[kind]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"bad.tar is damaged or no .tar archive \({message}"):
        read("imagenet_a", path)


def test_an_archive_inside_that_is_empty_takes_nothing_of_the_next(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "o.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("n1.tar"), io.BytesIO())
        archive.addfile(tarfile.TarInfo("n2/1.jpg"), io.BytesIO())
    with pytest.raises(ValueError, match=r"o.tar is damaged .*n1.tar does not end as"):
        list(files(tmp_path / "o.tar"))


def test_corruptions_are_read_without_keeping_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = 0

    class Counted(File):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def counting(root: Path) -> Iterator[File]:
        nonlocal alive
        for file in files(root):
            alive += 1
            yield Counted(*file)
            assert alive <= 2

    source = trees.corrupted(tmp_path)
    monkeypatch.setattr(imagenet_c.trees, "files", counting)
    found = read("imagenet_c", source)
    assert len(found.items) == 150 and found.fingerprint == fingerprint(files(source))


def test_objects_that_share_a_class_are_refused_when_they_are_read(tmp_path: Path) -> None:
    source = _objectnet_mapping(tmp_path, 1, Banana="reflex camera; banana")
    with pytest.raises(ValueError, match=r"classes n\d+\+n\d+ and .* share the output n04069434"):
        read("objectnet", source)


def test_names_of_classes_are_those_that_objectnet_uses() -> None:
    names = imagenet.wnids_by_name()
    assert len(names) == 998 and "crane" not in names  # a bird and a machine
    assert names["plunger, plumber's helper"] == "n03970156"
