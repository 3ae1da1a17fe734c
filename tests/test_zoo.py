"""Users' own checkpoints: what is evaluated, stored and refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from grids import CLASSES, CONV, SETS, SIZE, VIT, Grid, grid, images, labels, reference
from own_checkpoints import checkpoint, own, rows
from PIL import Image
from safetensors.torch import load_file, save_file

from engine import models, zoo
from engine.data import imagenet
from engine.errors import RecipeError

__all__ = ["grid", "own"]


def accuracy(state: dict[str, torch.Tensor], own: Grid, name: str) -> float:
    """By timm in float64."""
    index = np.arange(len(SETS[name]) * 7)
    with torch.no_grad():
        logits = reference(state)(images(own, name, index))
    out = [i for i, one in enumerate(CLASSES) if one not in SETS[name]]
    logits[:, out] = -torch.inf
    return 100 * (logits.argmax(1) == labels(own, name, index)).double().mean().item()


def test_interpolated_checkpoints_are_those_of_timm(own):
    a, b = (load_file(own.folder / f"{name}.safetensors") for name in "AB")
    found = rows(own, "AB", "outline few", alphas=[0.0, 0.3, 1.0])
    assert [(row.alpha, row.set, row.n) for row in found] == [
        (alpha, name, n) for name, n in (("outline", 35), ("few", 21)) for alpha in (0.0, 0.3, 1.0)
    ]
    for row in found:
        mixed = {k: (1 - row.alpha) * a[k].double() + row.alpha * b[k].double() for k in a}
        assert row.accuracy == pytest.approx(accuracy(mixed, own, row.set)), row
    assert len({row.accuracy for row in found}) > 2


def test_models_alone_are_the_ends_of_their_interpolation(own):
    ends = rows(own, "AB", "outline", alphas=[0.0, 1.0])
    alone = rows(own, "AB", "outline")
    assert [row.alpha for row in alone] == [None, None]
    assert [Path(row.model).name for row in alone] == ["A.safetensors", "B.safetensors"]
    assert [row.accuracy for row in ends] == [row.accuracy for row in alone]


def test_intervals_are_those_of_a_share_of_images(own):
    """Every image is a source of its own, so they are the binomial's, nearly."""
    plain, sure = (rows(own, "AB", "outline", intervals=asked) for asked in (False, True))
    assert [dataclasses.replace(row, low=None, high=None) for row in sure] == plain
    assert plain[0].low is None and "±" not in zoo.table(plain)
    for row in sure:
        share = row.accuracy / 100
        wanted = 196 * math.sqrt(share * (1 - share) / row.n)
        assert row.low < row.accuracy < row.high
        assert (row.high - row.low) / 2 == pytest.approx(wanted, rel=0.2)
        assert f"{row.accuracy:.2f} ±{(row.high - row.low) / 2:.2f}" in zoo.table(sure)


def test_a_model_is_evaluated_once_wherever_its_file_is(own, monkeypatch):
    first = rows(own, "AB", "outline", alphas=[0.0, 0.5])
    moved = own.folder / "M.safetensors"
    shutil.move(own.folder / "A.safetensors", moved)
    seen = []
    run = zoo.evaluate._pass
    monkeypatch.setattr(zoo.evaluate, "_pass", lambda *a: (seen.append(a[1]), run(*a)))
    again = rows(own, "MB", "outline", alphas=[0.0, 0.5, 1.0])
    assert [row.accuracy for row in again[:2]] == [row.accuracy for row in first]
    assert len(seen) == 1 and len(seen[0]) == 1, "alpha = 1 alone is new"


def test_a_pack_is_taken_as_it_is(own):
    first = rows(own, "A", "outline")
    (pack,) = (own.runs / "packs").iterdir()
    shutil.move(pack, own.folder / "packed")
    shutil.rmtree(own.folder / "outline")
    (row,) = rows(own, "A", "packed")
    assert row.accuracy == first[0].accuracy and row.set == "packed"
    with pytest.raises(ValueError, match=r"packed: made with another transform .*crop: 1.0, not"):
        rows(own, "A", "packed", "model.crop=0.9")


def test_the_heads_classes_are_listed_found_or_refused(own):
    with pytest.raises(ValueError, match=r"5 outputs, but no set has as many classes \(few 3\)"):
        rows(own, "A", "few")
    listed = own.folder / "classes.txt"
    listed.write_text("\n".join(CLASSES) + "\n")
    by_file = rows(own, "A", "few", classes=listed)
    by_set = rows(own, "A", "few outline")
    assert by_file[0] == by_set[0]
    listed.write_text("\n".join(reversed(CLASSES)))
    turned = rows(own, "A", "outline", classes=listed)
    assert turned[0].accuracy != by_set[1].accuracy, "another order of classes is another result"
    for text in ("bar\ncross\n", "\n".join([*CLASSES[:4], "bar"])):
        listed.write_text(text)
        with pytest.raises(ValueError, match=r"classes.txt lists \d classes, but .* 5 outputs"):
            rows(own, "A", "few", classes=listed)
    with pytest.raises(ValueError, match=r"A\.safetensors is no list of class names"):
        rows(own, "A", "few", classes=own.folder / "A.safetensors")
    listed.write_text("\n".join([*CLASSES[:4], "other"]))
    with pytest.raises(ValueError, match=r"outline has 1 classes that the model's head lacks.*squ"):
        rows(own, "A", "outline", classes=listed)


def test_a_thousand_outputs_are_imagenets(own):
    checkpoint(own.folder / "I.safetensors", 3, classes=1000)
    for old, new in zip(SETS["few"], imagenet.wnids()[7:10], strict=True):
        (own.folder / "few" / old).rename(own.folder / "few" / new)
    (row,) = rows(own, "I", "few")
    assert row.n == 21


def test_folders_named_by_numbers_are_counted(own):
    """As in ImageNetV2: as text, class 10 would be the third."""
    checkpoint(own.folder / "V.safetensors", 4, classes=12)
    files = [file for shape in CLASSES for file in (own.folder / "outline" / shape).iterdir()]
    for number in range(12):
        (own.folder / "v2" / str(number)).mkdir(parents=True)
        for file in files[number::12]:
            shutil.copy(file, own.folder / "v2" / str(number) / f"{file.parent.name}{file.name}")
    (row,) = rows(own, "V", "v2")
    state = load_file(own.folder / "V.safetensors")
    net = timm.create_model(VIT, num_classes=12, img_size=SIZE).double().eval()
    net.load_state_dict(state)
    paths = sorted((own.folder / "v2").glob("*/*.png"))
    config = timm.get_pretrained_cfg(VIT)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]) / 255
    x = torch.from_numpy((pixels - np.array(config.mean)) / np.array(config.std))
    with torch.no_grad():
        top1 = net(x.permute(0, 3, 1, 2)).argmax(1).tolist()
    right = [int(path.parent.name) == said for path, said in zip(paths, top1, strict=True)]
    assert row.accuracy == pytest.approx(100 * np.mean(right)) and any(right)
    by_text = sorted(map(str, range(12)))
    assert sum(right) != sum(
        by_text.index(path.parent.name) == said for path, said in zip(paths, top1, strict=True)
    )


def test_a_thousand_classes_are_imagenets_or_listed():
    def head(classes):
        return zoo._head(1000, {"s": SimpleNamespace(classes=tuple(classes))}, None)

    numbers = [str(i) for i in range(1000)]
    assert head(sorted(numbers)) == tuple(numbers)
    assert head(imagenet.wnids()) == imagenet.wnids()
    with pytest.raises(ValueError, match=r"classes of s are not its wnids; .* by --classes FILE"):
        head([f"class {i}" for i in range(1000)])


def test_what_is_stored_is_told_without_reading_a_model(own, monkeypatch):
    first = rows(own, "AB", "outline")

    def read(*_):
        pytest.fail("read or built a model to know a shape or a name")

    for place, name in ((zoo.models, "create"), (zoo.checkpoints, "load"), (zoo.Cell, "state")):
        monkeypatch.setattr(place, name, read)
    assert rows(own, "AB", "outline") == first


def test_the_architecture_is_what_timms_file_beside_the_weights_says(own):
    timms = {"mean": [0.4, 0.5, 0.5], "std": [0.2, 0.2, 0.3], "interpolation": "bilinear"}
    timms |= {"input_size": [3, SIZE, SIZE], "crop_pct": 1.0, "tag": "mine"}
    config = own.folder / "config.json"
    with pytest.raises(ValueError, match=r"A\.safetensors says nothing .*name it by --arch"):
        zoo.published(own.folder / "A.safetensors")
    config.write_text(json.dumps({"architecture": VIT, "pretrained_cfg": timms}))
    arch, words = zoo.published(own.folder / "A.safetensors")
    found = zoo.resolve(arch, words).model
    assert (found.arch, found.image_size, found.crop) == (VIT, SIZE, 1.0)
    assert (found.mean, found.std) == (timms["mean"], timms["std"])
    assert (found.interpolation, found.crop_mode) == ("bilinear", "center")
    squashed = {"architecture": VIT, "pretrained_cfg": timms | {"crop_mode": "squash"}}
    config.write_text(json.dumps(squashed))
    found = zoo.resolve(*zoo.published(own.folder / "A.safetensors")).model
    assert models.transform(found).crop_mode == "squash"
    with pytest.raises(RecipeError, match=r"crop_mode='squish' is not.*did you mean 'squash'"):
        zoo.resolve(VIT, ["model.crop_mode=squish"])
    config.write_text(json.dumps({"architecture": VIT}))
    with pytest.raises(ValueError, match=r"json is no config.json of timm's .*pretrained_cfg"):
        zoo.published(own.folder / "A.safetensors")


def test_what_does_not_belong_together_is_refused_by_name(own):
    checkpoint(own.folder / "C.safetensors", 0, arch=CONV)
    checkpoint(own.folder / "D.safetensors", 0, classes=3)
    torch.manual_seed(0)
    deep = timm.create_model(VIT, num_classes=5, img_size=SIZE, depth=2).state_dict()
    save_file(deep, own.folder / "E.safetensors")
    shutil.copy(own.folder / "A.safetensors", own.folder / "F.safetensors")
    (own.folder / "G.safetensors").write_bytes(b"no weights")
    shutil.copytree(own.folder / "few", own.folder / "more" / "outline")
    refused = {
        "AC": r"C.safetensors has no head.weight: .* another architecture than test_vit",
        "AD": r"D.safetensors has 3 classes, .*A.safetensors has 5: evaluate them apart",
        "AE": r"E.safetensors does not fit VisionTransformer: .*blocks.* missing",
        "AF": r"two of .*A.safetensors, .*F.safetensors hold the same weights",
        "AG": r"G.safetensors is cut or no safetensors file",
        "AX": r"there is no checkpoint .*X.safetensors",
        "A": r"alphas interpolate between exactly 2 models, not 1",
        "ABF": r"alphas interpolate between exactly 2 models, not 3",
    }
    for pair, message in refused.items():
        with pytest.raises(ValueError, match=message):
            rows(own, pair, "outline", alphas=[0.5])
    with pytest.raises(ValueError, match=r"two sets of one name among .*outline, .*more.outline"):
        rows(own, "A", "outline more/outline")
    with pytest.raises(ValueError, match=r"absent is not a folder"):
        rows(own, "A", "absent")


def test_weights_that_are_no_numbers_are_named(own):
    state = load_file(own.folder / "B.safetensors")
    name = next(k for k in state if k.endswith("qkv.weight"))
    state[name][0, 0] = math.nan
    save_file(state, own.folder / "N.safetensors")
    with pytest.raises(ValueError, match=rf"N\.safetensors: {name} holds NaN"):
        rows(own, "AN", "outline", alphas=[0.0, 0.5])


def test_a_mix_whose_answers_are_no_numbers_is_named(own):
    """Beyond its ends an interpolation may have a variance below zero."""
    for name, variance in (("C", 1.0), ("D", 2.0)):
        state = load_file(checkpoint(own.folder / f"{name}.safetensors", 0, CONV))
        state |= {k: v.fill_(variance) for k, v in state.items() if k.endswith("running_var")}
        state["classifier.bias"] += variance
        save_file(state, own.folder / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"C\.\w+ \+ .*D\.\w+ at alpha -3 on outline: .* are NaN"):
        rows(own, "CD", "outline", arch=CONV, alphas=[0.5, -3.0])


def test_a_set_that_changed_since_is_refused(own):
    rows(own, "A", "outline")
    picture = sorted((own.folder / "outline" / "disc").iterdir())[0]
    shutil.copy(sorted((own.folder / "tinted" / "disc").iterdir())[0], picture)
    with pytest.raises(ValueError, match=r"the images in .*outline changed since"):
        rows(own, "A", "outline")
