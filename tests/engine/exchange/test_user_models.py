"""Users' own checkpoints: what is evaluated, stored and refused."""

import dataclasses
import math
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.data import imagenet
from engine.exchange import user_models
from engine.recipe.overrides import parsed
from helpers.evaluations import IMAGES, Counted, average, by_timm
from helpers.grids import CLASSES, CONV, SETS, SIZE, VIT, images
from helpers.user_checkpoints import checkpoint, rows


@pytest.mark.parametrize("mask", ["none", "present"])
def test_interpolated_checkpoints_are_those_of_timm(user_grid, mask):
    a, b = (load_file(user_grid.folder / f"{name}.safetensors") for name in "AB")
    evaluated = rows(user_grid, "AB", "outline few", alphas=[0.0, 0.3, 1.0], mask=mask)
    assert {(row.evaluated_on, row.mask, row.classes) for row in evaluated} == {
        ("outline", "none", 5), ("few", mask, 3 if mask == "present" else 5)
    }  # fmt: skip
    assert [(row.alpha, row.evaluated_on, row.images) for row in evaluated] == [
        (alpha, name, n) for name, n in (("outline", 35), ("few", 21)) for alpha in (0.0, 0.3, 1.0)
    ]
    for row in evaluated:
        mix = average([a, b], [1 - row.alpha, row.alpha])
        logits, truth = by_timm(user_grid, row.evaluated_on, mix, mask=mask)
        share = (logits.argmax(1) == truth).double().mean().item()
        assert row.accuracy_pct == pytest.approx(100 * share), row
    assert len({row.accuracy_pct for row in evaluated}) > 2


def test_intervals_are_those_of_a_share_of_images(user_grid):
    """Every image is a source of its own, so they are the binomial's, nearly."""
    plain, sure = (
        rows(user_grid, "AB", "outline", intervals=with_intervals)
        for with_intervals in (False, True)
    )
    ends = dict.fromkeys(("accuracy_low", "accuracy_high", "change_low", "change_high"))
    assert [dataclasses.replace(row, **ends) for row in sure] == plain
    assert plain[0].accuracy_low is None
    for row in sure:
        share = row.accuracy_pct / 100
        expected = 196 * math.sqrt(share * (1 - share) / row.images)
        assert row.accuracy_low < row.accuracy_pct < row.accuracy_high
        assert (row.accuracy_high - row.accuracy_low) / 2 == pytest.approx(expected, rel=0.2)


def test_a_model_is_evaluated_once_wherever_its_file_is(user_grid, monkeypatch):
    first = rows(user_grid, "AB", "outline", alphas=[0.0, 0.5])
    moved = user_grid.folder / "M.safetensors"
    shutil.move(user_grid.folder / "A.safetensors", moved)
    counted = Counted(monkeypatch)
    again = rows(user_grid, "MB", "outline", alphas=[0.0, 0.5, 1.0])
    assert [row.accuracy_pct for row in again[:2]] == [row.accuracy_pct for row in first]
    assert (counted.images, counted.models) == (IMAGES, 1), "alpha = 1 alone is new"


def test_a_pack_is_taken_as_it_is(user_grid):
    first = rows(user_grid, "A", "outline")
    (pack,) = (user_grid.runs / "packs").iterdir()
    shutil.move(pack, user_grid.folder / "packed")
    shutil.rmtree(user_grid.folder / "outline")
    (row,) = rows(user_grid, "A", "packed")
    assert row.accuracy_pct == first[0].accuracy_pct and row.evaluated_on == "packed"
    with pytest.raises(ValueError, match=r"packed: made with another transform .*crop: 1.0, not"):
        rows(user_grid, "A", "packed", "model.crop=0.9")


def test_a_users_set_may_be_named_like_a_union(user_grid):
    (plain,) = rows(user_grid, "A", "outline")
    (user_grid.folder / "outline").rename(user_grid.folder / "few+tinted")
    (row,) = rows(user_grid, "A", "few+tinted")
    assert (row.accuracy_pct, row.images) == (plain.accuracy_pct, plain.images)


def test_the_heads_classes_are_named_in_its_order_or_refused(user_grid):
    head = ("ring", "bar", "square", "disc", "cross")
    (row,) = rows(user_grid, "A", "outline", classes=head)
    logits, truth = by_timm(user_grid, "outline", load_file(user_grid.folder / "A.safetensors"))
    answers = [CLASSES.index(head[place]) for place in logits.argmax(1)]
    assert row.accuracy_pct == pytest.approx(100 * np.mean(np.array(answers) == truth.numpy()))
    for classes, message in (
        (None, r"names the classes of .*A.safetensors.s 5 outputs.* --classes"),
        (("bar", "cross"), r"--classes has 2 names, but the head of .* 5 outputs"),
        ((*CLASSES[:4], "squares"), r"few has 1 class .* lacks: 'square' \(is it squares"),
    ):
        with pytest.raises(ValueError, match=message):
            rows(user_grid, "A", "few", classes=classes)


def test_a_thousand_outputs_are_imagenets(user_grid):
    """Folders bear wnids or the outputs' numbers; as text 10 stands before 8."""
    checkpoint(user_grid.folder / "I.safetensors", 3, classes=1000)
    drawn = images(user_grid, "few", np.arange(21))
    shutil.copytree(user_grid.folder / "few", user_grid.folder / "numbers")
    for shape, number in zip(SETS["few"], (8, 9, 10), strict=True):
        for name, label in (("few", imagenet.wnids()[number]), ("numbers", str(number))):
            (user_grid.folder / name / shape).rename(user_grid.folder / name / label)
    by_wnid, by_number = rows(user_grid, "I", "few numbers", classes=None, mask="present")
    assert by_number.accuracy_pct == by_wnid.accuracy_pct and by_wnid.images == 21
    net = timm.create_model(VIT, num_classes=1000, img_size=SIZE).double().eval()
    net.load_state_dict(load_file(user_grid.folder / "I.safetensors"))
    with torch.no_grad():
        top1 = net(drawn)[:, 8:11].argmax(1)
    assert by_wnid.accuracy_pct == pytest.approx(
        100 * (top1 == torch.arange(21) // 7).double().mean()
    )
    with pytest.raises(ValueError, match=r"outline has 5 classes .*'bar' \(is it .*its folders"):
        rows(user_grid, "I", "outline", classes=None)


def test_the_recipe_of_a_datasets_name_has_the_mask_of_published_accuracies(user_grid, caplog):
    checkpoint(user_grid.folder / "I.safetensors", 3, classes=1000)
    for number, wnid in enumerate(imagenet.wnids("a")[:5]):
        shape = user_grid.folder / "outline" / CLASSES[number]
        for name in ("imagenet_a", "imagenet_sketch", "mine"):
            (user_grid.folder / name / wnid).mkdir(parents=True)
            shutil.copy(shape / "0.png", user_grid.folder / name / wnid)
    caplog.set_level("INFO", "engine.evaluation.accuracies")
    for mask, expected in (
        ("benchmark", [("present", 5), ("none", 1000)]),
        ("none", [("none", 1000)] * 2),
        ("present", [("present", 5)] * 2),
    ):
        caplog.clear()
        evaluated = rows(user_grid, "I", "imagenet_a imagenet_sketch", classes=None, mask=mask)
        assert [(row.mask, row.classes) for row in evaluated] == expected
        assert ("published accuracies use" in caplog.text) == (mask == "none")
    with pytest.raises(ValueError, match=r"no recipe has a dataset 'mine'.*set --mask none or"):
        rows(user_grid, "I", "mine", classes=None, mask="benchmark")
    (pack,) = (user_grid.runs / "packs").glob("imagenet_a-*")
    shutil.move(pack, user_grid.folder / "packed")
    (packed,) = rows(user_grid, "I", "packed", classes=None, mask="benchmark")
    assert packed.mask == "present", "by the pack's own name"


def test_what_does_not_belong_together_is_refused_by_name(user_grid):
    checkpoint(user_grid.folder / "C.safetensors", 0, arch=CONV)
    checkpoint(user_grid.folder / "D.safetensors", 0, classes=3)
    torch.manual_seed(0)
    deep = timm.create_model(VIT, num_classes=5, img_size=SIZE, depth=2).state_dict()
    save_file(deep, user_grid.folder / "E.safetensors")
    shutil.copy(user_grid.folder / "A.safetensors", user_grid.folder / "F.safetensors")
    state = load_file(user_grid.folder / "B.safetensors")
    headless = {name: tensor for name, tensor in state.items() if "head" not in name}
    save_file(headless, user_grid.folder / "H.safetensors")
    name = next(k for k in state if k.endswith("qkv.weight"))
    state[name][0, 0] = math.nan
    save_file(state, user_grid.folder / "N.safetensors")
    refused = {
        "AC": r"C.safetensors is not a test_vit, .* lacks .* such as cls_token: name its arch",
        "AH": r"H.safetensors is a test_vit without a head \(head.weight is missing\)",
        "AD": r"D.safetensors has 3 classes, .*A.safetensors has 5: give models with the same head",
        "AE": r"E.safetensors does not fit VisionTransformer: .*blocks.* missing",
        "AF": r"two of .*A.safetensors, .*F.safetensors contain the same weights",
        "AN": rf"N\.safetensors: {name} contains NaN",
        "AX": r"checkpoint .*X.safetensors does not exist",
        "A": r"--alphas requires exactly 2 models, not 1",
    }
    for pair, message in refused.items():
        with pytest.raises(ValueError, match=message):
            rows(user_grid, pair, "outline", alphas=[0.5])
    with pytest.raises(ValueError, match=r"absent is not a folder"):
        rows(user_grid, "A", "absent")


def test_a_mix_whose_answers_are_no_numbers_is_named(user_grid):
    """Beyond its ends an interpolation may have a variance below zero."""
    for name, variance in (("C", 1.0), ("D", 2.0)):
        state = load_file(checkpoint(user_grid.folder / f"{name}.safetensors", 0, CONV))
        state |= {k: v.fill_(variance) for k, v in state.items() if k.endswith("running_var")}
        state["classifier.bias"] += variance
        save_file(state, user_grid.folder / f"{name}.safetensors")
    message = r"C\.\w+ \+ .*D\.\w+ alpha=-3, evaluated on outline: .* are NaN"
    with pytest.raises(ValueError, match=message):
        rows(user_grid, "CD", "outline", arch=CONV, alphas=[0.5, -3.0])


def test_transparent_images_of_a_users_set_lie_on_the_recipes_background(user_grid):
    place = user_grid.folder / "clear"
    (place / CLASSES[0]).mkdir(parents=True)
    Image.new("RGBA", (SIZE, SIZE)).save(place / CLASSES[0] / "0.png")
    words = [f"runs={user_grid.runs}", f"model.image_size={SIZE}"]
    for background, level in (("white", 255), ("black", 0)):
        resolved = user_models.resolve(VIT, parsed([*words, f"dataset.background={background}"]))
        assert (user_models.pack_at(resolved, place).pixels([0]) == level).all()


def test_a_set_that_changed_since_is_refused(user_grid):
    rows(user_grid, "A", "outline")
    picture = sorted((user_grid.folder / "outline" / "disc").iterdir())[0]
    shutil.copy(sorted((user_grid.folder / "tinted" / "disc").iterdir())[0], picture)
    with pytest.raises(ValueError, match=r"the images in .*outline changed since") as caught:
        rows(user_grid, "A", "outline")
    remedy = re.search(r"since (\S+) was encoded: .* or delete that folder", str(caught.value))
    shutil.rmtree(remedy[1])
    assert rows(user_grid, "A", "outline")
