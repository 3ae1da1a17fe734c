"""`rib encode` on tiny trees: its lines, its question, its refusals and its packs."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from engine import cli
from engine.campaigns import verify
from engine.commands import verify as command
from engine.data import packs
from engine.data.kinds import kind_of
from engine.data.packs import size_bytes
from engine.machine.files import cache_folder
from engine.recipe.overrides import parsed
from engine.recipe.resolve import recipe_of_sections
from helpers import imagenet_trees as trees
from helpers.encoded_rib import SUBSAMPLE
from helpers.endings import refused
from loaders import decoding
from loaders.batches import Resident, Stream
from loaders.beton import RAW, BetonWriter

IN_C = "imagenet_c"


def test_the_command_says_what_it_does(rib, capsys):
    source = trees.by_wnid(rib.folder / "shown")
    first = source / trees.WNIDS[0]
    Image.new("CMYK", (40, 40)).save(first / "ink.jpg")
    (first / "torn.jpg").write_bytes(b"\xff\xd8 no picture")
    (source / "README.txt").write_text("about")
    jpeg = "dataset.pack_format=jpeg"
    assert rib.encode("imagenet_r", source, jpeg) == 2
    assert "is not the published imagenet_r: 8 images, not 30,000" in capsys.readouterr().err
    assert rib.encode("imagenet_r", source, "--partial", jpeg) == 0
    shown = capsys.readouterr().out
    for text in (
        "imagenet_r: 8 images of 200 classes at 32 px, jpeg: about",
        "left out, not part of this dataset: README.txt",
        f"CMYK converted to RGB: 1 image, such as {trees.WNIDS[0]}/ink.jpg",
        f"images, which cannot be decoded: {trees.WNIDS[0]}/torn.jpg (not an image)",
        "not as published: 8 images, not 30,000\n",
        "not as published: 197 of 200 classes have no image: n",
        "imagenet_r: 7 images of 200 classes in ",
    ):
        assert text in shown, text
    assert rib.encode("imagenet_r", source, jpeg) == 0
    assert "imagenet_r is already encoded" in capsys.readouterr().out
    rib.encode("objectnet", rib.folder / "o", "--partial", jpeg)
    assert "no model's parameters may be tuned on it" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_of_imagenet_c_is_confirmed_first(rib, capsys, monkeypatch):
    whole = (IN_C, rib.folder / "c", "--partial", "dataset.subsample=full")
    assert rib.encode(*whole) == 2
    printed = capsys.readouterr()
    assert "is all of imagenet_c, about " in printed.out and "add --yes to enc" in printed.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n" * ("all of it" in question))
    assert rib.encode(*whole) == 2
    assert "error: not confirmed" in capsys.readouterr().err
    assert rib.encode(*whole, "--yes") == 0
    assert "imagenet_c: 150 images of 1000 classes in" in capsys.readouterr().out
    assert len(rib.builder("dataset.subsample=full").sets[IN_C].group) == 150
    for loader in ("auto", "resident"):
        for subsample, kind in (("full", Stream), (str(SUBSAMPLE), Resident)):
            words = (f"dataset.subsample={subsample}", f"loader={loader}")
            assert type(rib.builder(*words).sets.source(IN_C)) is kind, "all of IN-C streams"
    resolved = recipe_of_sections("vit_b16_augreg_in1k", "imagenet_rib")
    assert size_bytes(resolved, 3_750_000) == pytest.approx(574e9, rel=0.001)
    pack = rib.builder().sets[IN_C].pack.folder
    on_disk = sum(file.stat().st_size for file in pack.iterdir() if file.name != "manifest.json")
    assert on_disk <= size_bytes(rib.builder().recipe, SUBSAMPLE) <= on_disk + 500 * SUBSAMPLE


def test_an_interrupted_command_goes_on(rib, capsys, monkeypatch):
    words = (IN_C, rib.folder / "c", "--partial", "model.crop=0.6")
    turns = [*[mock.DEFAULT] * 40, KeyboardInterrupt, *[mock.DEFAULT] * (SUBSAMPLE - 40)]
    to_rgb = mock.Mock(wraps=decoding.to_rgb, side_effect=turns)
    monkeypatch.setattr(decoding, "to_rgb", to_rgb)
    assert rib.encode(*words) == 130
    capsys.readouterr()
    assert rib.encode(*words) == 0 and to_rgb.call_count == SUBSAMPLE + 1
    assert "resuming an interrupted run" in capsys.readouterr().out


def test_a_part_of_imagenet_c_names_the_parts_it_lacks(rib, tmp_path, capsys, caplog):
    source = trees.corrupted(tmp_path)
    shutil.rmtree(source / "weather" / "frost")
    shutil.rmtree(source / "noise" / "shot_noise" / "4")
    frost = " ".join(f"frost/{severity}" for severity in range(1, 6))
    missing = f"6 of 75 parts are missing: shot_noise/4 {frost}"
    lacks = f"{missing}; 69 of 75 parts have not 50,000 images"
    assert rib.encode(IN_C, source, "model.crop=0.7") == 2
    assert lacks in capsys.readouterr().err
    assert rib.encode(IN_C, source, "--partial", "model.crop=0.7") == 0
    assert f"  not as published: {missing}" in capsys.readouterr().out
    resolved = rib.builder("model.crop=0.7").recipe
    pack = packs.pack_of(resolved, IN_C, tmp_path)
    assert len(pack) == SUBSAMPLE, "its size alone tells nothing"
    assert f"imagenet_c is incomplete: {lacks}" in caplog.text
    lacking = kind_of(resolved.dataset, IN_C).shortfall(pack)
    check = verify.AccuracyCheck(IN_C, SUBSAMPLE, 50.0, 40.0, 99.0, lacks=lacking)
    assert f"\n{IN_C} is incomplete: {lacks}" in command.text("m", [check])
    small = packs.pack_of(rib.builder().recipe, "imagenet_val", tmp_path)
    assert kind_of(resolved.dataset, "imagenet_val").shortfall(small).startswith("6 images, not")


def test_all_sets_of_a_folder_are_encoded(rib, tmp_path, capsys):
    """Each set lies under a usual name; one that cannot be read does not stop the others."""
    trees.by_wnid(tmp_path / "imagenet-a")
    trees.archive(trees.by_wnid(tmp_path / "r"), tmp_path / "imagenet_r.tar")
    (tmp_path / "imagenet_sketch" / "strange").mkdir(parents=True)
    trees.objectnet(tmp_path)
    words = ("--partial", "model.crop=0.8")
    assert rib.encode("--all", tmp_path, *words) == 2
    streams = capsys.readouterr()
    assert "error: imagenet_sketch: " in streams.err and "has no images" in streams.err
    for name in ("imagenet_a: 6 images", "imagenet_r: 6 images", "objectnet: 8 images"):
        assert f"{name} of" in streams.out, name
    missing = "imagenet_val imagenet_v2 imagenet_cartoon imagenet_drawing imagenet_c"
    assert f"rib download {missing} --to {tmp_path}\n" in streams.out
    shutil.rmtree(tmp_path / "imagenet_sketch")
    assert rib.encode("--all", tmp_path, *words) == 0
    assert capsys.readouterr().out.count("is already encoded") == 3


def test_no_room_on_the_disk_is_refused_before_the_work(rib, capsys, monkeypatch):
    usage = lambda path: type("Usage", (), {"free": 10_000})  # noqa: E731
    monkeypatch.setattr("engine.commands.encode.shutil.disk_usage", usage)
    assert rib.encode("imagenet_a", rib.folder / "a", "--partial", "model.crop=0.5") == 2
    assert "free space, use another runs=FOLDER" in capsys.readouterr().err


OF_FFCV = """\
name: mine
kind: folder
root: nowhere
sets: [second, other]
train_sets: [third]
upstream: first
"""


def test_a_file_of_ffcvs_users_becomes_a_pack_without_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(1, 32, 32, 3)
    writer = BetonWriter(open("mine.beton", "w+b"), 1, RAW, 32, 32)  # noqa: SIM115
    writer.add(pixels.tobytes(), 1)
    writer.finish()
    writer.close()
    Path("classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    Path("mine.yaml").write_text(OF_FFCV, encoding="utf-8")
    model = ["runs=runs", "model.image_size=32"]
    words = ["--model", "vit_tiny_random", "--dataset", "mine.yaml", *model]
    command = ["encode", "third", "--beton", "mine.beton", *words]
    assert "requires --classes FILE, with one name per line" in refused(*command)
    command += ["--classes", "classes.txt"]
    assert "mine has no dataset 'fourth'" in refused("encode", "fourth", *command[2:])
    assert "--partial and --yes require --images" in refused(*command, "--partial")
    of_c = ["encode", "imagenet_c", *command[2:4], "--classes", "classes.txt", *words[:2]]
    assert "does not say which corruption and severity each image has" in refused(*of_c)
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert f"third: 1 images of 2 classes in {tmp_path}/runs/packs/third-" in shown
    resolved = recipe_of_sections("vit_tiny_random", "mine.yaml", parsed(model))
    Path("nowhere/third/cat").mkdir(parents=True)
    Image.fromarray(pixels[0]).save("nowhere/third/cat/0.png")  # the pack is not made of it
    pack = packs.pack_of(resolved, "third", cache_folder())
    assert pack.classes == ("cat", "dog") and np.array_equal(pack.pixels([0]), pixels)
