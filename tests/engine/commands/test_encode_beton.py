"""`rib encode --beton`: a set of a campaign, from a file that FFCV's users have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine import cli, recipe
from engine.data import packs
from engine.machine.files import cache_folder
from loaders.beton import RAW, BetonWriter

DATA = "name: mine\nkind: folder\nroot: nowhere\nsets: [second, other]\nupstream: first\n"


def test_a_campaign_finds_the_pack_and_needs_no_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    writer = BetonWriter(Path("mine.beton"), 4)
    for number, pixels in enumerate(images):
        writer.add(pixels.tobytes(), mode=RAW, height=32, width=32, label=number % 2)
    writer.finish()
    writer.close()
    Path("classes.txt").write_text("cat\ndog\n")
    Path("mine.yaml").write_text(DATA)
    model = ["runs=runs", "model.image_size=32"]
    words = ["--model", "vit_tiny_random", "--dataset", "mine.yaml", *model]
    command = ["encode", "second", "--beton", "mine.beton", *words]
    assert cli.main(command) == 2
    assert "needs --classes FILE: a name a line" in capsys.readouterr().err
    command += ["--classes", "classes.txt"]
    assert cli.main(["encode", "third", *command[2:]]) == 2
    assert "mine has no set 'third'; it has " in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "second: 4 images of 2 classes in runs/packs/second-" in capsys.readouterr().out
    resolved = recipe.of_sections("vit_tiny_random", "mine.yaml", model)
    pack = packs.pack_of(resolved, "second", cache_folder())
    assert pack.classes == ("cat", "dog") and np.array_equal(pack.pixels(range(4)), images)
