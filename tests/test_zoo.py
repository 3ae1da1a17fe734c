"""Users' own checkpoints: what `rib evaluate` prints, stores and refuses."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from grids import CLASSES, CONV, SETS, SIZE, VIT, Grid, grid, images, labels, listing, reference
from PIL import Image
from safetensors.torch import load_file, save_file

from engine import cli, clip, models, zoo
from engine.context import Request
from engine.data import imagenet
from engine.errors import RecipeError
from engine.schema import ModelRecipe, WeightsRecipe

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


def rows(
    own: Grid,
    models: str,
    sets: str,
    *words: str,
    arch: str = VIT,
    suffix: str = "safetensors",
    **options,
) -> list:
    overrides = [f"runs={own.runs}", f"model.image_size={SIZE}", "model.crop=1.0"]
    overrides += ["evaluate.batch_size=8", *words]
    files = [own.folder / f"{name}.{suffix}" for name in models]
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


TINY_CLIP = "open_clip:tiny-clip"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2
    },
}  # fmt: skip


def clip_context(own: Grid) -> zoo.OwnContext:
    words = [f"runs={own.runs}", f"model.image_size={SIZE}"]
    return zoo.OwnContext(Request(""), zoo.resolve(TINY_CLIP, words), own.device)


@pytest.fixture
def clips(own: Grid, monkeypatch: pytest.MonkeyPatch) -> list:
    """open_clip's checkpoints A and B of a model that is small enough to draw, and the models."""
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-clip", TINY)
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", list(CLASSES))
    templates = [lambda name: f"a photo of a {name}.", lambda name: f"a {name}."]
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", templates)
    drawn = []
    for seed, name in enumerate("AB"):
        torch.manual_seed(seed)
        drawn.append(open_clip.create_model("tiny-clip", load_weights=False).eval())
        save_file(drawn[-1].state_dict(), own.folder / f"{name}.safetensors")
    return drawn


def of_open_clip(own: Grid, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings [35, E] of the outlined shapes, and the zero-shot head [E, 5], by open_clip:
    their product are its logits."""
    import open_clip

    files = [file for file, _ in listing(own, "outline")]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
    x = (pixels - np.array(open_clip.OPENAI_DATASET_MEAN)) / np.array(open_clip.OPENAI_DATASET_STD)
    head_EC = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer("tiny-clip"), CLASSES, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    with torch.no_grad():
        seen = torch.from_numpy(x).permute(0, 3, 1, 2).float()
        return model.encode_image(seen, normalize=True), model.logit_scale.exp() * head_EC


def check(own: Grid, row: zoo.Row, logits: torch.Tensor) -> None:
    """A row, and what the store got last, from logits [35, 5] by another way."""
    paths = (own.runs / "store" / "predictions").glob("*/*.parquet")
    found = pq.read_table(max(paths, key=lambda path: path.stat().st_mtime_ns)).to_pydict()
    truth = labels(own, "outline", np.arange(35)).unsqueeze(1)
    others = logits.scatter(1, truth, -torch.inf).amax(1, keepdim=True)
    wanted = {
        "margin": logits.gather(1, truth) - others,
        "p_true": logits.softmax(1).gather(1, truth),
    }
    for name, values in wanted.items():
        torch.testing.assert_close(torch.tensor(found[name]), values.flatten(), rtol=0, atol=1e-4)
    right = (logits.argmax(1, keepdim=True) == truth).double().mean().item()
    assert row.accuracy == pytest.approx(100 * right)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_checkpoints_of_open_clip_are_the_classifiers_that_open_clip_makes_of_them(
    own, clips, suffix
):
    for name, model in zip("AB", clips, strict=True):
        if suffix == "pt":  # as its training script saves, on several GPUs
            state = {f"module.{k}": v for k, v in model.state_dict().items()}
            held = {"epoch": 3, "name": "x", "state_dict": state}
            torch.save(held, own.folder / f"{name}.pt")
        (row,) = rows(own, name, "outline", arch=TINY_CLIP, suffix=suffix)
        unit_NE, head_EC = of_open_clip(own, model)
        check(own, row, unit_NE @ head_EC)


def test_between_checkpoints_of_open_clip_towers_and_heads_are_averaged(own, clips):
    (row,) = rows(own, "AB", "outline", arch=TINY_CLIP, alphas=[0.25])
    (_, first_EC), (_, second_EC) = (of_open_clip(own, model) for model in clips)
    mixed = copy.deepcopy(clips[0])
    with torch.no_grad():
        for one, other in zip(mixed.parameters(), clips[1].parameters(), strict=True):
            one.lerp_(other, 0.25)
    check(own, row, of_open_clip(own, mixed)[0] @ torch.lerp(first_EC, second_EC, 0.25))


def test_an_open_clip_tower_that_was_fine_tuned_brings_its_head(own, clips):
    """As the engine writes it: the zero-shot model and what became of it have a curve between."""
    made = zoo.cell_of(clip_context(own), own.folder / "A.safetensors").state()
    tuned = made | {"head.bias": torch.arange(5.0)}
    save_file(tuned, own.folder / "T.safetensors")
    (row,) = rows(own, "AT", "outline", arch=TINY_CLIP, alphas=[0.5])
    unit_NE, head_EC = of_open_clip(own, clips[0])
    check(own, row, unit_NE @ head_EC + torch.arange(5.0) / 2)


def test_what_is_wrong_with_open_clips_checkpoints_is_said(own, clips):
    with pytest.raises(ValueError, match=r"A\.safetensors has no head.*--arch open_clip:NAME\)\?"):
        rows(own, "A", "outline")
    with pytest.raises(RecipeError, match=r"no model 'tiny-clap'; did you mean 'tiny-clip'"):
        rows(own, "A", "outline", arch="open_clip:tiny-clap")
    with pytest.raises(RecipeError, match=r"no weights 'x' for tiny-clip"):
        rows(own, "A", "outline", "model.weights.tag=x", arch=TINY_CLIP)
    checkpoint(own.folder / "V.safetensors", 0)
    with pytest.raises(ValueError, match=r"V\.safetensors does not fit Tower: visual\."):
        rows(own, "V", "outline", arch=TINY_CLIP)
    state = clips[0].state_dict()
    save_file({k: v for k, v in state.items() if k != "visual.proj"}, own.folder / "P.safetensors")
    with pytest.raises(ValueError, match=r"P\.safetensors does not fit CLIP: visual.proj is"):
        rows(own, "P", "outline", arch=TINY_CLIP)


def test_images_are_made_as_the_named_weights_of_open_clip_want():
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip]")
    keys = ("mean", "std", "interpolation")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (61, 97, 3), dtype=np.uint8))
    made = {}
    for name, tag in open_clip.list_pretrained():
        wanted = open_clip.get_pretrained_cfg(name, tag)
        found = clip.data_config(f"open_clip:{name}", tag)
        assert [found[key] for key in keys] == [wanted[key] for key in keys], (name, tag)
        how = (wanted["interpolation"], wanted["resize_mode"])
        if how in made:
            continue
        recipe = ModelRecipe(
            name="m", arch=f"open_clip:{name}", image_size=32, weights=WeightsRecipe(tag=tag)
        )
        cfg = open_clip.transform.PreprocessCfg(
            size=32, **{k: wanted[k] for k in (*keys, "resize_mode")}
        )
        theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(image)
        pixels = torch.from_numpy(models.transform(recipe)(image)).permute(2, 0, 1)
        ours = models.Normalize(recipe, torch.device("cpu"))(pixels[None])[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        made[how] = ours
    assert len(made) == 4, "bilinear and bicubic, cropped and squashed"


def test_without_a_tag_images_are_as_all_weights_of_open_clip_want_them():
    pytest.importorskip("open_clip", reason="the extra [clip]")

    def wants(name: str, tag: str = "") -> tuple:
        found = clip.data_config(f"open_clip:{name}", tag)
        return found["mean"], found["interpolation"], found["crop_mode"]

    usual = wants("ViT-B-16")
    assert usual[1:] == ("bicubic", "center")
    assert wants("ViT-B-16-SigLIP") == ((0.5, 0.5, 0.5), "bicubic", "squash"), "they agree"
    assert wants("ViT-L-14") == usual, "they do not agree"
    assert wants("ViT-L-14", "laion2b_s32b_b82k") == ((0.5, 0.5, 0.5), *usual[1:])


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


def test_a_csv_without_a_place_is_named(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(OSError, match=r"a\.csv cannot be written"):
        zoo.write_csv(tmp_path / "a.csv", [zoo.Row("A", None, "s", 5, 10.0)])


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
        ("0,1,0.5,1", [0, 1, 0.5]),
        ("0.5", [0.5]),
    ],
)
def test_alphas(text, alphas):
    assert zoo.parse_alphas(text) == alphas


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0:1",
        "1:0:0.1",
        "0:1:0",
        "a",
        "0:1:0.1:2",
        "0:inf:1",
        "nan:1:1",
        "0,nan",
        "0:1e308:1e-9",
    ],
)
def test_alphas_that_are_none(text):
    with pytest.raises(ValueError, match=r"START:STOP:STEP or a,b,c"):
        zoo.parse_alphas(text)


def test_alphas_that_are_too_many():
    with pytest.raises(ValueError, match=r"'0:1:1e-4' are 10001 models; at most 1000"):
        zoo.parse_alphas("0:1:1e-4")
    assert len(zoo.parse_alphas("0.001:1:0.001")) == 1000


def test_alphas_close_together_keep_their_lines(tmp_path):
    near = [zoo.Row("A + B", 0.123456788 + k * 1e-9, "s", 5, 10.0 + k) for k in range(2)]
    zoo.write_csv(tmp_path / "a.csv", near)
    for text in (zoo.table(near), (tmp_path / "a.csv").read_text()):
        assert "0.123456788" in text and "0.123456789" in text


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
    words += f" outline few runs={own.runs} model.image_size={SIZE} --intervals"
    assert cli.main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "(1 - alpha) A.safetensors + alpha B.safetensors" in printed
    with (own.folder / "accuracy.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["alpha"], row["set"]) for row in found[:4]] == [
        ("0", "outline"), ("0.5", "outline"), ("1", "outline"), ("0", "few"),
    ]  # fmt: skip
    for row in found:
        assert f"{float(row['accuracy']):.2f} ±" in printed
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "/A.safetensors says nothing of its architecture"),
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
