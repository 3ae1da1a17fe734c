"""Folders of images as users have them: what is listed, what is named, what is refused."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from helpers.imagenet_trees import draw
from loaders import folders, trees


def tree(root: Path) -> Path:
    for number, name in enumerate(("cat/1.jpg", "cat/2.png", "dog/a.b.png")):
        draw(root / name, [number])
    return root


def test_a_folder_is_listed_by_class_and_name_and_what_is_left_out_is_named(tmp_path):
    root = tree(tmp_path / "set")
    strange = {"notes.txt", "top.png", "cat/._1.jpg", "cat/deeper/3.png", ".cache/4.png"}
    for name in strange:
        draw(root / name, [9]) if name.endswith(".png") else (root / name).write_text("x")
    listing = folders.list_folders(root)
    assert listing.classes == ["cat", "dog"]
    shown = [(item.label, item.source, item.key) for item in listing.items]
    assert shown == [
        (0, "cat/1", "cat/1.jpg"),
        (0, "cat/2", "cat/2.png"),
        (1, "dog/a.b", "dog/a.b.png"),
    ]
    statuses = {key: (root / key).stat() for _, _, key in shown}
    stamps = [f"{key} {of.st_size} {of.st_mtime_ns}" for key, of in statuses.items()]
    # Packs that are there are compared by this text.
    assert listing.fingerprint == hashlib.sha256("\n".join(stamps).encode()).hexdigest()
    assert set(listing.left_out) == strange


@pytest.mark.parametrize("kind", ["pipe", "device", "dead link"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, kind):
    root = tree(tmp_path / "set")
    path = root / "cat" / "3.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.parent / "gone")
    message = "cannot be read" if kind == "dead link" else "is neither a file nor a folder; remove"
    with pytest.raises(ValueError, match=rf"cat/3.png {message}"):
        folders.list_folders(root)


def test_deep_folders_and_links_end(tmp_path):
    root = tree(tmp_path / "set")
    with contextlib.chdir(root / "cat"):
        for _ in range(100):
            os.mkdir("d")
            os.chdir("d")
    with pytest.raises(ValueError, match=r"is more than 64 folders deep; is it the right place"):
        folders.list_folders(root)
    linked = tmp_path / "linked"
    for level in range(40):  # 2^40 paths
        folder = linked / f"{level:02d}"
        folder.mkdir(parents=True)
        for name in ("x", "y"):
            (folder / name).symlink_to(linked / f"{level + 1:02d}")
    draw(linked / "40" / "1.png", [0])
    with pytest.raises(ValueError, match=r"is a link to .*, which was already read; remove the"):
        folders.list_folders(linked)


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    with (tmp_path / "1.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ValueError, match=r"1.png has 1,099,511,627,776 bytes, too many"):
        trees.open_image(trees.Place(str(tmp_path / "1.png")))


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gone is not a folder; it needs one folder per class"):
        folders.list_folders(tmp_path / "gone")
    (tmp_path / "set").mkdir()
    draw(tmp_path / "set" / "1.png", [0])
    with pytest.raises(ValueError, match=r"has no images <class>/<image> \(.jpg, .jpeg"):
        folders.list_folders(tmp_path / "set")


def test_an_empty_folder_above_the_classes_is_refused(tmp_path):
    """Such as a distortion whose archive is not unpacked; folders of other files are left out."""
    draw(tmp_path / "blur" / "cat" / "1.png", [0])
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "blur.csv").touch()
    assert folders.list_folders(tmp_path, ["distortion"]).left_out == ("questions/blur.csv",)
    (tmp_path / "noise" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has folders without images: noise$"):
        folders.list_folders(tmp_path, ["distortion"])
