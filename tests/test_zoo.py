"""Users' own checkpoints: what `rib evaluate` prints, stores and refuses."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from grids import CLASSES, CONV, SETS, SIZE, VIT, Grid, grid, images, labels, reference
from PIL import Image
from safetensors.torch import load_file, save_file

from engine import cli, zoo
from engine.data import imagenet

__all__ = ["grid"]


def checkpoint(path: Path, seed: int, arch: str = VIT, classes: int = len(CLASSES)) -> Path:
    torch.manual_seed(seed)
    size = {"img_size": SIZE} if arch == VIT else {}
    save_file(timm.create_model(arch, num_classes=classes, **size).state_dict(), path)
    return path


@pytest.fixture
def own(grid: Grid, tmp_path: Path) -> Grid:
    """Two checkpoints A and B beside the sets, which may be altered."""
    folder = tmp_path / "shapes"
    shutil.copytree(grid.folder, folder)
    for seed, name in enumerate("AB"):
        checkpoint(folder / f"{name}.safetensors", seed)
    return Grid(folder, tmp_path / "runs", grid.device)


def rows(own: Grid, models: str, sets: str, *words: str, arch: str = VIT, **options) -> list:
    overrides = [f"runs={own.runs}", f"model.image_size={SIZE}", "model.crop=1.0"]
    overrides += ["evaluate.batch_size=8", *words]
    files = [own.folder / f"{name}.safetensors" for name in models]
    places = [own.folder / name for name in sets.split()]
    wanted = zoo.resolve(arch, overrides)
    return zoo.evaluated(wanted, files, places, own.device, **options)


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
    for models, message in refused.items():
        with pytest.raises(ValueError, match=message):
            rows(own, models, "outline", alphas=[0.5])
    with pytest.raises(ValueError, match=r"two sets of one name among .*outline, .*more.outline"):
        rows(own, "A", "outline more/outline")
    with pytest.raises(ValueError, match=r"absent is not a folder"):
        rows(own, "A", "absent")


def test_a_set_that_changed_since_is_refused(own):
    rows(own, "A", "outline")
    picture = sorted((own.folder / "outline" / "disc").iterdir())[0]
    shutil.copy(sorted((own.folder / "tinted" / "disc").iterdir())[0], picture)
    with pytest.raises(ValueError, match=r"the images in .*outline changed since"):
        rows(own, "A", "outline")


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("0:1:0.3", [0, 0.3, 0.6, 0.9]),
        ("0.5:0.5:1", [0.5]),
        ("0,0.25,1", [0, 0.25, 1]),
        ("0.5", [0.5]),
    ],
)
def test_alphas(text, alphas):
    assert zoo.parse_alphas(text) == alphas


@pytest.mark.parametrize("text", ["", "0:1", "1:0:0.1", "0:1:0", "a", "0:1:0.1:2"])
def test_alphas_that_are_none(text):
    with pytest.raises(ValueError, match=r"START:STOP:STEP or a,b,c"):
        zoo.parse_alphas(text)


def test_the_table_fits_a_hundred_columns_and_loses_nothing():
    sets = [f"a-set-with-a-rather-long-name-{i}" for i in range(9)]
    many = [
        zoo.Row("/data/" + "x" * 60 + m, None, name, 50000, 10.0 + i)
        for i, name in enumerate(sets)
        for m in "AB"
    ]
    text = zoo.table(many)
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"{10.0 + i:.2f}" in text for i in range(9)) and text.count("50,000") == 9
    assert "xA  " in text and "xB  " in text


def test_files_of_one_name_have_a_line_each():
    places = ["run1/best.safetensors", "run2/best.safetensors"]
    found = [zoo.Row(place, None, "few", 10, 10.0 + i) for i, place in enumerate(places)]
    lines = zoo.table(found).splitlines()[2:]
    assert [line.split() for line in lines] == [[places[0], "10.00"], [places[1], "11.00"]]


def test_the_command_prints_a_table_and_writes_csv(own, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(own.folder)
    monkeypatch.setattr(zoo.ranks, "stop", lambda: None)  # of the whole test session
    words = f"evaluate --models A.safetensors B.safetensors --arch {VIT} --alphas 0:1:0.5 --sets"
    words += f" outline few runs={own.runs} model.image_size={SIZE}"
    assert cli.main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "(1 - alpha) A.safetensors + alpha B.safetensors" in printed
    with (own.folder / "accuracy.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["alpha"], row["set"]) for row in found[:4]] == [
        ("0", "outline"), ("0.5", "outline"), ("1", "outline"), ("0", "few"),
    ]  # fmt: skip
    for row in found:
        assert f"{float(row['accuracy']):.2f}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--arch test_vitt", "no architecture 'test_vitt'; did you mean 'test_vit"),
        (f"--arch {VIT} model.imagesize=3", "unknown key 'model.imagesize'; did you mean"),
        (f"--arch {VIT} --alphas 1:0:1", "alphas '1:0:1': write"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(own, capsys, words, message):
    given = f"evaluate --models {own.folder}/A.safetensors --sets {own.folder}/outline {words}"
    assert cli.main(given.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and "Traceback" not in printed
