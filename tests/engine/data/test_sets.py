"""Sets: labels in the head's order, masks, splits, and packs that are what the recipe asks for."""

import base64
import dataclasses
import hashlib
import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.data import imagenet, thumbnails
from engine.data.kinds import folder as folder_kind
from engine.data.kinds import imagenet as imagenet_kind
from engine.data.kinds import kind_of
from engine.data.masks import names_in_head, outputs_of, to_head
from engine.data.packs import pack_folder
from engine.data.sets import LabelledSet, Sets
from engine.data.splits import split, units_of
from engine.recipe.schema import ModelRecipe, Recipe
from helpers import grids

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    grids.draw(tmp_path / "images")
    names = ["outline", "tinted", "few"]
    return Recipe(
        model=ModelRecipe(name="m", arch=grids.VIT, image_size=grids.SIZE, crop=1.0),
        dataset=folder_kind.Recipe(name="shapes", root=str(tmp_path / "images"), sets=names),
        downstream="outline",
        runs=str(tmp_path),
    )


def opened(recipe: Recipe, name: str, **changes: Any) -> LabelledSet:
    """A set of the recipe with changes of the data's options."""
    dataset = dataclasses.replace(recipe.dataset, **changes)
    return Sets(dataclasses.replace(recipe, dataset=dataset), CPU, Path("/nonexistent"))[name]


def test_image_that_does_not_decode_is_named(recipe, tmp_path, caplog):
    (tmp_path / "images" / "outline" / "disc" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"disc/0"):
        opened(recipe, "outline")
    assert not list((tmp_path / "packs").glob("outline-*"))
    pack, again = (opened(recipe, "outline", undecodable="skip").pack for _ in "ab")
    assert pack.fingerprint == again.fingerprint
    message = "outline lacks 1 of 35 images, which cannot be decoded: disc/0.png ("
    assert sum(message in record.getMessage() for record in caplog.records) == 2  # made, found
    assert [image["key"] for image in pack.manifest["skipped"]] == ["disc/0.png"]


@pytest.mark.parametrize(
    ("sources", "meaning"),
    [
        ("own", "different photos; if they show the same ones, set dataset.sources=names"),
        ("names", "copies of one photo; if they are not, set dataset.sources=own"),
    ],
)
def test_images_of_the_same_name_are_one_photo_only_where_the_benchmark_says_so(
    tmp_path, sources, meaning
):
    of_sets = ("a/dog/000", "a/cat/1", "a/cat/2", "b/dog/000", "b/cat/3", "b/cat/4", "c/dog/9")
    for place in (f"{image}.png" for image in of_sets):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place)
    names = ["b", "c", "missing"]
    dataset = folder_kind.Recipe(
        "mine", root=str(tmp_path), upstream="a", sets=names, sources=sources
    )
    a, b, c, missing = (kind_of(dataset, name) for name in ("a", *names))
    assert a.remarks([]) == c.remarks([a, b]) == missing.remarks([a, b, c]) == []
    assert b.remarks([a]) == [
        "b: images have the same class and file name as images in a (1), such as dog/000. They "
        f"count as {meaning}"
    ]
    listed = {kind.name: kind.listing(tmp_path).items for kind in (a, b, c)}
    of = {name: {item.source for item in items} for name, items in listed.items()}
    shared = {"dog/000"} if sources == "names" else set()
    assert of["a"] & of["b"] == shared and not of["a"] & of["c"]
    assert {name: len(each) for name, each in of.items()} == {"a": 3, "b": 3, "c": 1}
    assert a.photos().isdisjoint(b.photos()) == (sources == "own")


def test_a_set_names_its_kinds_of_images_and_the_background_is_part_of_its_name(
    recipe, tmp_path, caplog
):
    folder = tmp_path / "images" / "outline" / "disc"
    Image.new("RGBA", (grids.SIZE, grids.SIZE)).save(folder / "0.png")
    (folder / "notes.txt").write_text("about")
    for color, level in (("white", 255), ("#ffffff", 255), ("black", 0)):
        pack = opened(recipe, "outline", background=color).pack
        assert (pack.pixels([pack.keys.tolist().index("disc/0.png")]) == level).all()
    assert len(list((tmp_path / "packs").glob("outline-*"))) == 2, "white is #ffffff"
    assert [m for m in caplog.messages if "file name as images in" not in m] == [
        message
        for color in ("white", "black")
        for message in (
            "outline: left out, because not <class>/<image>: disc/notes.txt",
            f"outline: RGBA converted to RGB, composited on {color}: 1 image, such as disc/0.png",
        )
    ]


def test_the_place_of_a_pack_is_what_it_always_was(recipe):
    """Packs that were made before are found by this key, which holds what determines the pixels."""
    folder = folder_kind.Recipe(name="shapes", root="/images", sets=["a"])
    rib = imagenet_kind.Recipe(name="rib", kind="imagenet", sets=[])

    def place(name: str = "a", crop: float = 1.0, of: Any = folder, **changes: Any) -> str:
        model = dataclasses.replace(recipe.model, crop=crop)
        dataset = dataclasses.replace(of, **changes)
        return pack_folder(dataclasses.replace(recipe, model=model, dataset=dataset), name).name

    usual = "a-34373ea29da773fe"
    assert place() == place(sets=["few"], holdout=0.0, thumbnails=True) == usual
    assert place("imagenet_v2", of=rib) == "imagenet_v2-3813c5e1e905f9ce"
    assert place("objectnet", of=rib) == "objectnet-3b80f9e2562857aa"
    others = [place(crop=0.9), place(pack_format="jpeg"), place(undecodable="skip")]
    assert len({usual, *others, place(sources="names")}) == 5


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [("tinted", {}, "set: 'tinted', not 'outline'"), ("outline", {"seed": 1}, "seed: 1, not 0")],
)
def test_another_pack_in_a_packs_place_is_refused(recipe, name, change, message):
    folder, other = (
        opened(recipe, "outline").pack.folder,
        opened(recipe, name, **change).pack.folder,
    )
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(ValueError, match=rf"another pack: {message}; move it"):
        opened(recipe, "outline")


def test_the_split_of_emoji_is_what_it_always_was():
    """Names of stored cells and predictions hold what determines the split, not its positions."""
    labels = np.repeat(np.arange(200), 4)  # four renderings of 200 concepts
    sources = np.array([f"1f{label:03x}" for label in labels])
    assert units_of(labels, sources) is None
    train, holdout = split(labels, 0.25, 0, units_of(labels, sources))
    digest = hashlib.sha256(train.tobytes() + holdout.tobytes()).hexdigest()
    assert digest == "ba6aeca69de8c43d188ed226678d7a31586fe561f1e426e1f2e76c12b45f883c"
    assert not np.array_equal(split(labels, 0.25, 1)[1], holdout)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60),
    st.floats(0, 0.99),
    st.integers(0, 3),
)
def test_split_laws(drawn, share, seed):
    """A class never loses its last image, and copies of a source are on one side."""
    labels = np.array([label for label, _ in drawn], dtype=np.int64)
    sources = np.array([f"{label}/{source}" for label, source in drawn])
    for units in (None, units_of(labels, sources)):
        train, holdout = split(labels, share, seed, units)
        assert np.array_equal(np.sort(np.concatenate([train, holdout])), np.arange(len(labels)))
        assert np.array_equal(holdout, np.sort(holdout)) and holdout.dtype == np.int64
        assert all(map(np.array_equal, split(labels, share, seed, units), (train, holdout)))
        parts = np.arange(len(labels)) if units is None else sources
        assert not set(parts[train]) & set(parts[holdout])
        for label in set(labels.tolist()):
            n = len(set(parts[labels == label]))
            held = len(set(parts[holdout][labels[holdout] == label]))
            assert held == min(round(share * n), n - 1)
    if units is None:  # no copies, or a class is one source
        several = len(set(drawn)) > len(set(labels.tolist()))
        assert not several or len(set(drawn)) == len(drawn)


def test_a_set_of_copies_says_so_in_its_key(recipe, tmp_path):
    for file in (tmp_path / "images" / "outline").glob("*/0.png"):
        Image.open(file).save(file.with_suffix(".bmp"))  # of one stem
    outline, tinted = (opened(recipe, name, sources="names") for name in ("outline", "tinted"))
    assert outline.split_key(recipe.dataset) == [0.25, 0, "by source"]
    assert tinted.split_key(recipe.dataset) == [0.25, 0]
    sources = outline.pack.sources
    assert len(sources) == 5 * (grids.COPIES + 1)
    assert not set(sources[outline.train]) & set(sources[outline.holdout])
    assert opened(recipe, "outline").split_key(recipe.dataset) == [0.25, 0], "each is its own"


HEAD = ("square", "ring", "other", "cross")


@pytest.mark.parametrize(("rule", "mask"), [("present", [True, True, False, True]), ("none", None)])
def test_labels_follow_the_heads_names_and_a_mask_its_rule(recipe, rule, mask):
    pack = opened(recipe, "few").pack
    labels, actual = to_head(pack, outputs_of(pack, HEAD), HEAD, rule)
    assert [*labels[[0, grids.COPIES, 2 * grids.COPIES]]] == [3, 1, 0]
    assert (actual if actual is None else actual.tolist()) == mask


def test_folders_of_an_imagenet_head_may_be_numbers():
    head = imagenet.wnids()
    assert names_in_head(("10", "2", "999"), head) == [head[10], head[2], head[999]]
    for folders in (("10", "1000"), ("1", "01"), ("10", "dog"), head[:3]):
        assert names_in_head(folders, head) == folders
    assert names_in_head(("0", "1"), head[:2]) == ("0", "1"), "another head: no guess"


def test_a_contact_sheet_shows_the_concepts_of_a_smoke_run():
    """A few images, of which none may be of a concept that a whole set would show."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 18, 18, 3), np.uint8)
    keys = ["flat/2764/1", "flat/2764/2", "mono/1f600/3"]
    pack: Any = SimpleNamespace(labels=np.array([5, 5, 9]), keys=keys, pixels=images.__getitem__)
    sheet = base64.b64decode(thumbnails.contact_sheet([pack, pack]))
    shown = np.asarray(Image.open(io.BytesIO(sheet)))
    corners = [(y, x) for y in range(3) for x in range(shown.shape[1] - 17)]
    assert any((shown[y : y + 18, x : x + 18] == images[0]).all() for y, x in corners)
