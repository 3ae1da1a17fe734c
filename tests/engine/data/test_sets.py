"""Sets: labels in the head's order, masks, splits, and packs that are what the recipe asks for."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import grids
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine import models
from engine.data import imagenet
from engine.data.packs import pack_folder
from engine.data.sets import Sets, names_in_head, to_head
from engine.data.splits import split, units_of
from engine.recipe.schema import DatasetRecipe, MethodRecipe, ModelRecipe, Recipe
from loaders.pack import Pack
from loaders.stream import Stream

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sets")
    grids.draw(folder / "images")
    names = ["outline", "tinted", "few"]
    dataset = DatasetRecipe(name="shapes", root=str(folder / "images"), sets=names)
    return Recipe(
        model=ModelRecipe(name="m", arch=grids.VIT, image_size=grids.SIZE, crop=1.0),
        dataset=dataset,
        method=MethodRecipe(name="ft", title="FT", module="fine_tune"),
        downstream="outline",
        runs=str(folder / "runs"),
    )


def opened(recipe: Recipe) -> Sets:
    return Sets(recipe, CPU, Path("/nonexistent"))


def test_labels_of_a_smaller_set_count_the_heads_classes(recipe: Recipe) -> None:
    sets = opened(recipe)
    assert sets.classes == grids.CLASSES
    few = sets["few"]
    names = [key.split("/")[0] for key in few.pack.keys]
    assert [sets.classes[label] for label in few.labels] == names
    assert few.mask is not None and few.mask.dtype == torch.bool
    assert [n for n, unmasked in zip(sets.classes, few.mask, strict=True) if unmasked] == [
        *grids.FEW
    ]
    assert sets["tinted"].mask is None


def test_pixels_are_the_drawings(recipe: Recipe) -> None:
    sets = opened(recipe)
    for name in (recipe.dataset.upstream, "few"):
        pack = sets[name].pack
        folder = Path(recipe.dataset.root) / name
        for i in (0, len(pack) - 1):
            with Image.open(folder / str(pack.keys[i])) as drawing:
                assert np.array_equal(pack.pixels([i])[0], np.asarray(drawing))


def test_set_with_a_class_that_the_head_lacks(recipe: Recipe) -> None:
    upside = dataclasses.replace(recipe.dataset, upstream="few", sets=["outline", "tinted"])
    with pytest.raises(ValueError, match=r"outline has 2 classes .* lacks: 'bar', 'disc'; "):
        opened(dataclasses.replace(recipe, dataset=upside))["outline"]


@pytest.mark.parametrize(
    ("root", "message"), [("gone", "gone/upstream is not a folder"), ("empty", "holds no images")]
)
def test_folder_that_holds_nothing(recipe: Recipe, tmp_path: Path, root: str, message: str) -> None:
    (tmp_path / "empty" / "upstream").mkdir(parents=True)
    dataset = dataclasses.replace(recipe.dataset, root=str(tmp_path / root))
    with pytest.raises(ValueError, match=message):
        opened(dataclasses.replace(recipe, dataset=dataset, runs=str(tmp_path)))["upstream"]


def test_image_that_does_not_decode_is_named(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grids.draw(tmp_path / "images")
    (tmp_path / "images" / "outline" / "disc" / "0.png").write_bytes(b"not a picture")
    dataset = dataclasses.replace(recipe.dataset, root=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"disc/0"):
        opened(dataclasses.replace(recipe, dataset=dataset, runs=str(tmp_path)))["outline"]
    assert not list((tmp_path / "packs").glob("outline-*"))
    lenient = dataclasses.replace(dataset, undecodable="skip")
    moved = dataclasses.replace(recipe, dataset=lenient, runs=str(tmp_path))
    pack = opened(moved)["outline"].pack
    assert opened(moved)["outline"].pack.fingerprint == pack.fingerprint
    message = "outline lacks 1 of 35 images, which cannot be decoded: disc/0.png ("
    assert sum(message in record.getMessage() for record in caplog.records) == 2  # made, found
    assert [image["key"] for image in pack.manifest["skipped"]] == ["disc/0.png"]
    assert pack.folder != pack_folder(tmp_path, dataset, recipe.model, "outline")


def test_a_set_names_its_kinds_of_images_and_the_background_is_part_of_its_name(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "images"
    grids.draw(root)
    for copy in (0, 1):
        Image.new("RGBA", (grids.SIZE, grids.SIZE)).save(root / "outline" / "disc" / f"{copy}.png")
    (root / "outline" / "disc" / "notes.txt").write_text("about")
    dataset = dataclasses.replace(recipe.dataset, root=str(root))
    packs = {}
    for background in ("white", "#ffffff", "black"):
        changed = dataclasses.replace(dataset, background=background)
        changed_recipe = dataclasses.replace(recipe, dataset=changed, runs=str(tmp_path))
        packs[background] = opened(changed_recipe)["outline"].pack
    assert packs["white"].folder == packs["#ffffff"].folder != packs["black"].folder
    assert packs["white"].fingerprint != packs["black"].fingerprint
    place = packs["white"].keys.tolist().index("disc/0.png")
    for background, level in (("white", 255), ("black", 0)):
        assert (packs[background].pixels([place]) == level).all()
    messages = [record.getMessage() for record in caplog.records]
    messages = [message for message in messages if "file name of images in" not in message]
    which = "2 images, such as disc/0.png, disc/1.png"
    assert messages == [
        "outline: left out, no <class>/<image>: disc/notes.txt",
        f"outline: RGBA converted to RGB, composited on white: {which}",
        "outline: left out, no <class>/<image>: disc/notes.txt",
        f"outline: RGBA converted to RGB, composited on black: {which}",
    ]


@pytest.mark.parametrize(("threads", "workers"), [(1, 2), (5, 5), (96, 8)])
def test_a_stream_reads_with_the_threads_of_its_process(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, threads: int, workers: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    source = opened(dataclasses.replace(recipe, source="stream")).source("few")
    assert isinstance(source, Stream) and source.workers == workers


def test_the_place_of_a_pack_is_what_it_always_was(recipe: Recipe) -> None:
    """Packs that were made before are found by this key."""
    folder = DatasetRecipe(name="shapes", root="/images", sets=["a"])
    published = dataclasses.replace(folder, kind="imagenet")
    assert [
        pack_folder(Path(), dataset, recipe.model, name).name
        for dataset, name in ((folder, "a"), (published, "imagenet_v2"), (published, "objectnet"))
    ] == ["a-71b6d72b9031cb15", "imagenet_v2-3813c5e1e905f9ce", "objectnet-3b80f9e2562857aa"]


def test_a_pack_under_another_sets_name_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    moved = dataclasses.replace(recipe, runs=str(tmp_path))
    folder, other_folder = (opened(moved)[name].pack.folder for name in ("outline", "tinted"))
    shutil.rmtree(folder)
    shutil.copytree(other_folder, folder)
    with pytest.raises(ValueError, match=r"another pack: set: 'tinted', not 'outline'; move it"):
        opened(moved)["outline"]


def test_a_pack_made_by_other_options_is_refused_where_its_images_are_gone(
    recipe: Recipe, tmp_path: Path
) -> None:
    seeded = [dataclasses.replace(recipe.dataset, seed=seed) for seed in (0, 1)]
    first, second = (
        dataclasses.replace(recipe, runs=str(tmp_path), dataset=options) for options in seeded
    )
    folder, other_folder = (
        opened(seed_recipe)["outline"].pack.folder for seed_recipe in (first, second)
    )
    shutil.rmtree(folder)
    other_folder.rename(folder)
    with pytest.raises(ValueError, match=r"another pack: seed: 1, not 0; move it"):
        opened(first)["outline"]


def test_pack_is_made_once_and_its_place_tells_transforms_apart(recipe: Recipe) -> None:
    first = opened(recipe)["few"].pack
    again = opened(recipe)["few"].pack
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    runs, dataset, model = Path(recipe.runs), recipe.dataset, recipe.model
    assert first.folder == pack_folder(runs, dataset, model, "few")
    same = dataclasses.replace(model, name="n", arch="test_resnet", interpolation="bicubic")
    cropped = dataclasses.replace(model, crop=0.9)
    shared = dataclasses.replace(dataset, sets=["few"], holdout=0.0)
    places = [
        pack_folder(runs, dataset, dataclasses.replace(model, interpolation="bicubic"), "few"),
        pack_folder(runs, shared, same, "few"),
        pack_folder(runs, dataset, cropped, "few"),
        pack_folder(runs, dataclasses.replace(dataset, pack_format="jpeg"), same, "few"),
    ]
    assert places[0] == places[1] and len(set(places)) == 3


def test_damaged_pack_is_refused_by_name(recipe: Recipe, tmp_path: Path) -> None:
    moved = dataclasses.replace(recipe, runs=str(tmp_path))
    folder = opened(moved)["few"].pack.folder
    images = folder / "images.beton"
    images.write_bytes(images.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=rf"{folder.name}/images\.beton"):
        opened(moved)["few"].pack.pixels(range(5))


def test_pack_of_another_transform_is_refused(recipe: Recipe) -> None:
    folder = opened(recipe)["few"].pack.folder
    spec = models.transform(dataclasses.replace(recipe.model, crop=0.9)).spec
    with pytest.raises(ValueError, match=r"another transform \(crop: 1\.0, not 0\.9\)"):
        Pack.open(folder, transform_spec=spec)


def test_split_keeps_train_and_holdout_apart(recipe: Recipe) -> None:
    few = opened(recipe)["few"]
    assert not set(few.train) & set(few.holdout)
    assert [*few.split("all")] == sorted([*few.train, *few.holdout])
    assert np.array_equal(few.split("train"), few.train)
    per_class = np.bincount(few.pack.labels[few.holdout])
    assert [*per_class] == [round(0.25 * grids.COPIES)] * 3
    whole = dataclasses.replace(recipe.dataset, holdout=0.0)
    none = opened(dataclasses.replace(recipe, dataset=whole))["few"]
    assert len(none.holdout) == 0
    for name in ("all", "train", "holdout"):
        assert len(none.split(name)) == 3 * grids.COPIES


@given(st.lists(st.integers(0, 4), max_size=60), st.floats(0, 0.99), st.integers(0, 3))
def test_split_laws(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels, dtype=np.int64)
    train, holdout = split(array, share, seed)
    assert np.array_equal(np.sort(np.concatenate([train, holdout])), np.arange(len(array)))
    assert np.array_equal(holdout, np.sort(holdout)) and holdout.dtype == np.int64
    for label in set(labels):
        n, held = labels.count(label), int((array[holdout] == label).sum())
        assert held == min(round(share * n), n - 1)  # a class never loses its last image
    again = split(array, share, seed)
    assert np.array_equal(again[0], train) and np.array_equal(again[1], holdout)


def test_split_of_a_class_does_not_depend_on_the_others() -> None:
    labels = np.repeat(np.arange(3), 8)
    _, whole = split(labels, 0.25, 5)
    _, alone = split(labels[:8], 0.25, 5)
    assert np.array_equal(whole[whole < 8], alone)
    assert not np.array_equal(split(labels, 0.25, 6)[1], whole)


def test_the_split_of_emoji_is_what_it_always_was() -> None:
    """Names of stored cells and predictions hold what determines the split, not its positions."""
    labels = np.repeat(np.arange(200), 4)  # four renderings of 200 concepts
    sources = np.array([f"1f{label:03x}" for label in labels])
    assert units_of(labels, sources) is None
    train, holdout = split(labels, 0.25, 0, units_of(labels, sources))
    digest = hashlib.sha256(train.tobytes() + holdout.tobytes()).hexdigest()
    assert digest == "ba6aeca69de8c43d188ed226678d7a31586fe561f1e426e1f2e76c12b45f883c"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60),
    st.floats(0, 0.99),
    st.integers(0, 3),
)
def test_copies_of_a_source_are_on_one_side(
    drawn: list[tuple[int, int]], share: float, seed: int
) -> None:
    labels = np.array([label for label, _ in drawn], dtype=np.int64)
    sources = np.array([f"{label}/{source}" for label, source in drawn])
    units = units_of(labels, sources)
    train, holdout = split(labels, share, seed, units)
    assert np.array_equal(np.sort(np.concatenate([train, holdout])), np.arange(len(labels)))
    assert set(labels[train]) == set(labels)
    if units is None:  # no copies, or a class is one source
        several = len(set(drawn)) > len(set(labels.tolist()))
        assert not several or len(set(drawn)) == len(drawn)
        return
    assert not set(sources[train]) & set(sources[holdout])
    for label in set(labels.tolist()):
        n = len(set(sources[labels == label]))
        assert len(set(sources[holdout][labels[holdout] == label])) == min(round(share * n), n - 1)


def test_where_all_sources_differ_nothing_changes() -> None:
    labels = np.tile(np.arange(5), 7)
    assert units_of(labels, np.array([f"photo {i}" for i in range(35)])) is None
    alone = split(labels, 0.25, 1)
    assert all(map(np.array_equal, alone, split(labels, 0.25, 1, np.arange(35))))


def test_a_set_of_copies_says_so_in_its_key(recipe: Recipe, tmp_path: Path) -> None:
    grids.draw(tmp_path / "images")
    for file in (tmp_path / "images" / "outline").glob("*/0.png"):
        Image.open(file).save(file.with_suffix(".bmp"))  # of one stem
    dataset = dataclasses.replace(recipe.dataset, root=str(tmp_path / "images"))
    sets = opened(dataclasses.replace(recipe, dataset=dataset, runs=str(tmp_path / "runs")))
    outline = sets["outline"]
    assert outline.split_key(dataset) == [0.25, 0, "by source"]
    assert sets["tinted"].split_key(dataset) == [0.25, 0]
    sources = outline.pack.sources
    assert len(outline.pack) == 5 * (grids.COPIES + 1)
    assert not set(sources[outline.train]) & set(sources[outline.holdout])


def test_to_head_follows_names_not_numbers(recipe: Recipe) -> None:
    pack = opened(recipe)["few"].pack
    labels, mask = to_head(pack, ("square", "ring", "other", "cross"))
    assert [*labels[[0, grids.COPIES, 2 * grids.COPIES]]] == [3, 1, 0]
    assert mask is not None and mask.tolist() == [True, True, False, True]


def test_without_a_mask_all_of_the_head_can_be_the_answer(recipe: Recipe) -> None:
    pack = opened(recipe)["few"].pack
    labels, mask = to_head(pack, ("square", "ring", "other", "cross"), "none")
    assert [*labels[[0, grids.COPIES, 2 * grids.COPIES]]] == [3, 1, 0] and mask is None
    joined = SimpleNamespace(name="o", classes=("square+other", "ring"), labels=np.array([0, 1]))
    labels, mask = to_head(joined, ("square", "ring", "other", "cross"), "none")  # type: ignore[arg-type]
    assert labels.tolist() == [0, 1]
    assert mask is not None and mask.tolist() == [True, True, False, True], "other is its square"


def test_classes_that_the_head_lacks_are_named_with_the_nearest(recipe: Recipe) -> None:
    pack = opened(recipe)["few"].pack
    with pytest.raises(
        ValueError, match=r"few has 1 .*: 'square' \(is it squares\?\); its .* 3 cl"
    ):
        to_head(pack, ("cross", "ring", "squares"))
    fruit = SimpleNamespace(name="fruit", classes=("banana", "qqq"), labels=np.array([0]))
    with pytest.raises(ValueError, match=r"'banana' \(is it n07753592 \(banana\)\?\), 'qqq'; its"):
        to_head(fruit, imagenet.wnids())  # type: ignore[arg-type]


def test_folders_of_an_imagenet_head_may_be_numbers() -> None:
    head = imagenet.wnids()
    assert names_in_head(("10", "2", "999"), head) == [head[10], head[2], head[999]]
    for folders in (("10", "1000"), ("1", "01"), ("10", "dog"), head[:3]):
        assert names_in_head(folders, head) == folders
    assert names_in_head(("0", "1"), head[:2]) == ("0", "1"), "another head: no guess"


@pytest.mark.parametrize("kind", ["folder", "emoji", "imagenet"])
def test_a_pack_that_may_leave_images_out_has_a_place_of_its_own(recipe: Recipe, kind: str) -> None:
    strict = dataclasses.replace(recipe.dataset, kind=kind, upstream="imagenet_val")
    lenient = dataclasses.replace(strict, undecodable="skip")
    places = {
        pack_folder(Path(), options, recipe.model, "imagenet_a") for options in (strict, lenient)
    }
    assert len(places) == 2


@pytest.mark.parametrize("thumbnails", [True, False])
def test_whether_images_may_be_shown_is_no_part_of_a_packs_name(
    recipe: Recipe, tmp_path: Path, thumbnails: bool
) -> None:
    dataset = dataclasses.replace(recipe.dataset, thumbnails=thumbnails)
    expected = pack_folder(tmp_path, recipe.dataset, recipe.model, "outline")
    assert pack_folder(tmp_path, dataset, recipe.model, "outline") == expected
