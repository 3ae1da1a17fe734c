"""`rib download` against a server on this machine with tiny archives of every set."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from engine import cli
from engine.data import downloads, sources
from engine.data.kinds.imagenet import SIZES
from helpers import imagenet_trees as trees
from helpers.published_archives import PASSWORD, Published, publish
from helpers.web import Web, serve

SETS = [name for name in SIZES if name != "imagenet_train"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[Web, Published]]:
    with serve() as web:
        yield web, publish(tmp_path_factory.mktemp("published"), web)


@pytest.fixture
def published(server) -> Published:
    return server[1]


@pytest.fixture
def web(server) -> Web:
    web, published = server
    web.files.clear()
    web.requests.clear()
    published.serve(web)
    return web


@pytest.fixture
def rib(web, published, capsys) -> Callable[..., str]:
    """What `rib download --to FOLDER` prints before it ends with this code."""

    def download(folder: Path, *words: str, code: int = 0) -> str:
        options = ("--to", str(folder), "--sources", str(published.sources))
        assert cli.main(["download", *options, *words]) == code
        return "".join(capsys.readouterr())

    return download


def at_terminal(patch: pytest.MonkeyPatch, answer: str = "y", password: str = PASSWORD) -> None:
    patch.setattr("sys.stdin.isatty", lambda: True)
    patch.setattr("getpass.getpass", lambda text: password)
    patch.setattr("builtins.input", lambda text: answer)


def test_every_set_comes_in_a_form_that_is_read(rib, published, tmp_path, monkeypatch):
    """A user at a terminal knows the password and accepts the terms."""
    at_terminal(monkeypatch)
    folder = tmp_path / "data"
    shown = rib(folder, "all", "--from", str(published.of_form))
    assert "imagenet_a: imagenet-a.tar has its published checksum; unpacked: " in shown
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [".downloads", *sorted(SETS)]
    remaining = [path for path in (folder / ".downloads").rglob("*") if path.is_file()]
    assert remaining == [], "archives are removed once unpacked"
    for name in SETS:
        place = sources.locate(folder, name, None)
        assert place == folder / name
        images = 150 if name == "imagenet_c" else 8 if name == "objectnet" else 6
        assert len(trees.read(name, place).items) == images, name
    assert PASSWORD not in "".join(p.read_text() for p in folder.glob("*.json"))
    assert (published.of_form / "ILSVRC2012_img_val.tar").is_file(), "the user's file stays"


def test_what_is_there_is_not_requested_again(rib, web, tmp_path):
    shown = rib(tmp_path, "imagenet_a", "imagenet_c", "--accept")
    assert shown.count("MIT licence for its code") == 1 and "github.com/hendrycks" in shown
    web.requests.clear()
    (tmp_path / "imagenet_c" / "blur.tar").unlink()
    shown = rib(tmp_path, "imagenet_a", "imagenet_c")
    assert "Terms" not in shown, "terms are accepted once"
    assert f"imagenet_a is there: {tmp_path / 'imagenet_a'}" in shown
    assert web.requests == [("blur.tar", "")]


def test_terms_are_accepted_first(rib, web, tmp_path, monkeypatch):
    shown = rib(tmp_path, "objectnet", code=2)
    assert "no model's parameters may ever be tuned on it" in shown
    assert "error: add --accept" in shown
    at_terminal(monkeypatch, answer="n")
    assert "terms not accepted" in rib(tmp_path, "objectnet", code=2)
    assert not web.requests


def test_a_set_that_does_not_come_does_not_stop_the_others(web, published, tmp_path, capsys):
    web.files["imagenet-a.tar"].statuses = [404]
    words = ["--to", str(tmp_path), "--sources", str(published.sources), "--accept"]
    assert cli.main(["download", *words, "imagenet_a", "imagenet_r"]) == 2
    shown = capsys.readouterr()
    assert "the server answers 404" in shown.err and "imagenet_r: imagenet-r.tar has" in shown.out


def test_a_form_is_explained_and_files_are_taken_from_a_folder(
    rib, published, tmp_path, monkeypatch
):
    words = ("imagenet_val", "imagenet_a", "--accept")
    with downloads.locked(tmp_path):
        assert "another `rib download` is using" in rib(tmp_path, *words, code=2)
    error = rib(tmp_path, *words, code=2)
    assert "imagenet_val: ILSVRC2012_img_val.tar is missing. ImageNet-1K's validation" in error
    assert "log in at https://image-net.org" in error and "--from" in error
    assert (tmp_path / "imagenet_a").is_dir(), "the sets without a form come all the same"
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"another")
    error = rib(tmp_path, *words, "--from", str(tmp_path), code=2)
    assert "ILSVRC2012_img_val.tar is not the published file: 7 bytes" in error
    linked = tmp_path / "linked"  # from where users keep their data; a link to it may be relative
    linked.mkdir()
    for path in published.of_form.iterdir():
        (linked / path.name).symlink_to(os.path.relpath(path, linked))
    refused = mock.Mock(side_effect=OSError("Invalid cross-device link"))  # so it is copied
    with monkeypatch.context() as patch:
        patch.setattr("engine.data.downloads.os.link", refused)
        rib(tmp_path, *words, "--from", str(linked))
    rib(tmp_path / "by-link", *words, "--from", str(linked))
    labels = trees.read("imagenet_val", tmp_path / "imagenet_val")
    assert [item.source[-1] for item in labels.items] == [*"123456"], "two of each wnid"


def test_a_password_is_typed_and_never_stored(rib, web, tmp_path, monkeypatch):
    shown = rib(tmp_path, "objectnet", "--accept", code=2)
    assert "objectnet-1.0.zip is downloaded but requires a password" in shown
    at_terminal(monkeypatch, password="wrong")
    assert "wrong password for" in rib(tmp_path, "objectnet", code=2)
    at_terminal(monkeypatch)
    web.requests.clear()
    rib(tmp_path, "objectnet")
    assert not web.requests, "the archive is there"
    assert len(trees.read("objectnet", tmp_path / "objectnet").items) == 8


def test_a_size_that_is_not_published_is_the_servers(rib, published, tmp_path):
    values = yaml.safe_load(published.sources.read_text())
    size = values["imagenet_a"]["files"][0].pop("bytes")
    mirror = tmp_path / "mirror.yaml"
    mirror.write_text(yaml.safe_dump(values))
    words = ["imagenet_a", "--sources", str(mirror), "--accept"]
    assert f"imagenet-a.tar, {size / 1e9:.2f} GB" in rib(tmp_path, *words)
    (tmp_path / "downloads.json").write_text("{")
    assert "downloads.json is damaged" in rib(tmp_path, *words, code=2)


def test_a_full_disk_is_reported_before_anything_is_downloaded(
    rib, web, published, tmp_path, monkeypatch
):
    """A compressed file is there twice while it is unpacked."""
    words, free = ("imagenet_sketch", "--accept"), [0]
    usage = lambda path: type("Usage", (), {"free": free[0]})  # noqa: E731
    monkeypatch.setattr("engine.commands.download.shutil.disk_usage", usage)
    free[0] = 2 * (published.files / "ImageNet-Sketch.zip").stat().st_size - 1
    assert "free space, name fewer datasets, or give another" in rib(tmp_path, *words, code=2)
    assert not web.requests
    free[0] += 1
    rib(tmp_path, *words)


def test_models_are_fetched_into_their_hubs_cache(capsys, monkeypatch):
    fetched: list[str] = []

    def fetch(model, cache: Path) -> None:
        if model.name == "vit_b16_sam_in1k":
            raise ValueError("timm could not load weights")
        fetched.append(model.name)

    monkeypatch.setattr("engine.models.pretrained.fetch", fetch)
    assert cli.main(["download", "--models", "all"]) == 2
    assert len(fetched) == 6 and "vit_b16_clip_openai" in fetched
    streams = capsys.readouterr()
    assert "vit_b16_sam_in1k: timm could not load weights" in streams.err
    assert "vit_b16_clip_openai: vit_base_patch16_clip_224.openai_ft_in1k is in" in streams.out


def test_the_training_set_is_taken_by_its_name_and_read_as_it_comes(rib, web, published, tmp_path):
    rib(tmp_path, "imagenet_train", "--accept", "--from", str(published.of_form))
    assert not web.requests
    items = trees.read("imagenet_train", tmp_path / "imagenet_train").items
    assert len({item.label for item in items}) == 3 and len(items) == 6


def test_a_password_comes_from_a_file_where_no_terminal_is(rib, tmp_path):
    file, words = tmp_path / "password.txt", ["objectnet", "--accept", "--password"]
    file.write_text(f"{PASSWORD}\n")
    assert PASSWORD not in rib(tmp_path, *words, str(file))
    assert len(trees.read("objectnet", tmp_path / "objectnet").items) == 8
    file.write_text("\n")
    shown = rib(tmp_path / "again", *words, str(file), code=2)
    assert "password.txt: its first line is empty" in shown


def test_addresses_are_asked_and_nothing_is_downloaded(rib, web, published, tmp_path):
    shown = rib(tmp_path / "new", "all", "--check")
    size = (published.files / "imagenet-a.tar").stat().st_size
    assert f"{web.address}/imagenet-a.tar: reachable, {size:,} bytes\n" in shown
    assert "ILSVRC2012_img_val.tar: requires a form, at https://image-net.org" in shown
    assert not (tmp_path / "new").exists() and "imagenet_train" not in shown
    web.files["imagenet-a.tar"].content += b"x"
    web.files["imagenet-r.tar"].statuses = [403]
    web.files["noise.tar"].kind = "text/html"
    web.files["blur.tar"].length = False
    shown = rib(tmp_path / "new", "all", "--check", code=1)
    assert f"reachable, {size + 1:,} bytes, but {size:,} are published" in shown
    assert "imagenet-r.tar: the server answers 403\n" in shown
    assert "noise.tar: the server sends a web page instead of the file\n" in shown
    assert "blur.tar: reachable, of unknown size\n" in shown
    assert "not reachable now: imagenet_r/imagenet-r.tar; a copy: hf download" in shown
    assert "imagenet_c/noise.tar" in shown.rpartition("not reachable")[2]
