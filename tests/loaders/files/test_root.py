"""A folder of a stranger's: no name and no link leads out of it."""

import os
from pathlib import Path

import pytest

from loaders.files.names import check_package, identifier, is_name
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

OUTSIDE = ("../outside", "a/../../outside", "{outside}", "link/file", "linked", "b/linked")


@pytest.fixture
def root(tmp_path) -> Root:
    """A folder with files, and links to a folder and a file beside it."""
    folder, outside = tmp_path / "runs", tmp_path / "elsewhere"
    for place in (folder / "a" / "deep", folder / "b", outside):
        place.mkdir(parents=True)
    for file in (folder / "a" / "deep" / "x", folder / "b" / "y", outside / "file"):
        file.write_text(file.name)
    (tmp_path / "outside").write_text("mine")
    (folder / "link").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "b" / "linked").symlink_to(outside / "file")
    return Root(folder)


def outside(root: Root) -> dict[Path, str]:
    folder = root.path.parent
    return {path: path.read_text() for path in (folder / "outside", folder / "elsewhere" / "file")}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    "act",
    [
        Root.read,
        Root.at,
        Root.file,
        Root.has,
        Root.size,
        lambda root, name: root.below(name).read("x"),
        lambda root, name: root.open(name, "ab"),
        lambda root, name: root.open(name, "wb"),
        lambda root, name: root.open(name, "r+b"),
        lambda root, name: root.write(f"{name}/new", b"theirs"),
        lambda root, name: root.make(name),
        lambda root, name: root.make_new(f"{name}/new"),
        lambda root, name: root.names(name),
        lambda root, name: root.files(name),
        lambda root, name: root.remove(f"{name}/file"),
        lambda root, name: root.rename("a", f"{name}/new"),
        lambda root, name: root.rename(f"{name}/file", "new"),
    ],
)
def test_what_is_outside_is_neither_read_nor_changed(act, name, root):
    before = outside(root)
    with pytest.raises((DamagedFile, NotADirectoryError)):
        act(root, name.format(outside=root.path.parent / "outside"))
    assert outside(root) == before and (root.path / "a").exists()


def test_a_link_goes_without_what_it_leads_to(root):
    before = outside(root)
    for name in ("link", "linked", "b", "b", "missing"):
        root.remove(name)
    assert outside(root) == before and root.names() == ["a"]
    root.write("a/new", b"1")
    (root.path / "linked").symlink_to(root.path.parent / "outside")
    root.write("linked", b"ours")  # replaces the link
    assert outside(root) == before and root.read("linked") == b"ours"


def test_a_linked_folder_of_the_users_own_is_followed(root):
    (root.path.parent / "runs2").symlink_to(root.path)
    other = Root(root.path.parent / "runs2", "a")
    assert other.read("deep/x") == other.read(other.path / "deep" / "x") == b"x"
    assert other.files() == ["deep/x"] and root.files() == ["a/deep/x", "b/y"]
    assert root.folders() == ["a", "b"] and root.files("nothing") == root.names("nothing") == []
    assert root.below("a").size("deep/x") == 1 and root.size("a") is None is root.size("nothing")
    with pytest.raises(DamagedFile, match="b/linked is a link"):
        root.check("b")
    root.check("a")


def test_a_relative_folder_is_one_too(root, monkeypatch):
    monkeypatch.chdir(root.path.parent)
    other = Root(Path("runs"))
    assert other.read(Path("runs/a/deep/x")) == b"x" and other.below(Path("runs/a")).has("deep/x")
    assert other.write(Path("runs/c/new"), b"") == other.at("c/new") == Path("runs/c/new")
    assert other.rename("c/new", Path("runs/c/newer")) == other.file("c/newer")
    with pytest.raises(DamagedFile, match="is not in runs"):
        other.read(Path("elsewhere/file"))


def test_what_may_never_end_is_no_file(root):
    os.mkfifo(root.path / "pipe")
    with (root.path / "hole").open("wb") as file:
        file.truncate(1 << 40)
    with (root.path / "large").open("wb") as file:
        file.truncate(1000)
    for name, message in (
        ("pipe", "pipe is a pipe"), ("hole", "almost all a hole"), ("a", "is a folder"),
        ("large", "more than 999 bytes"),
    ):  # fmt: skip
        with pytest.raises(DamagedFile, match=message):
            root.read(name, 999)
    with pytest.raises(FileNotFoundError, match=str(root.path / "nothing")):
        root.read("nothing")
    with pytest.raises(IsADirectoryError, match="move it away"):
        root.write("a", b"")
    for name in ("link", "linked", "b"):
        root.remove(name)
    with pytest.raises(DamagedFile, match="pipe is a pipe"):
        root.check()


def test_names_and_what_others_are_told_of_them():
    for name in ("few", "my set", "café", "a,optimizer.lr=1e-4", "$(touch X)"):
        assert is_name(name)
    for name in ("", ".", "..", ".x", "a/b", "a\\b", "{a}", "a\n", "\x1b[2J", "\ud800"):
        assert not is_name(name)
    assert identifier("a,optimizer.lr=1e-4") == "a,optimizer.lr=1e-4"
    strange = ["$(touch X)", "`touch X`", "a b", "a;b", "é", "-rf", ".", "a'b", 'a"b', "a|b"]
    assert len({identifier(name) for name in strange}) == len(strange)
    for name in strange:
        assert set(identifier(name)) <= set("abcdefghijklmnopqrstuvwxyzABX_-0123456789")
    check_package("@scope/a-b.c", "1.0rc1+cpu")
