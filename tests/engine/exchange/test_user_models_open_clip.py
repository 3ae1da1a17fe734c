"""Users' own checkpoints of open_clip: classifiers, mixes and images are open_clip's."""

from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from engine import models
from engine.evaluation.accuracies import OnSet
from engine.exchange import user_models
from engine.recipe import preprocessing
from engine.recipe.overrides import parsed
from engine.recipe.schema import ModelRecipe, WeightsRecipe
from engine.store.artifacts import Store
from helpers import tiny_clip
from helpers.evaluations import check_predictions
from helpers.grids import CLASSES, SIZE, VIT, Grid, labels
from helpers.tiny_clip import ARCH
from helpers.twins import assert_near
from helpers.user_checkpoints import checkpoint, rows


@pytest.fixture
def clips(user_grid: Grid, open_clip: ModuleType) -> list[torch.nn.Module]:
    """The models of which checkpoints A and B are."""
    models = [tiny_clip.drawn(open_clip, seed) for seed in (0, 1)]
    for name, model in zip("AB", models, strict=True):
        save_file(model.state_dict(), user_grid.folder / f"{name}.safetensors")
    return models


def embeddings(package: ModuleType, user_grid: Grid, model: torch.nn.Module) -> torch.Tensor:
    """Unit embeddings [35, E] of the outlined shapes, by open_clip."""
    with torch.no_grad():
        x = tiny_clip.pixels(package, user_grid, range(35)).float()
        return model.encode_image(x, normalize=True)


def check(user_grid: Grid, row: OnSet, logits: torch.Tensor) -> None:
    """A row and the newest stored predictions against logits [35, 5] that open_clip computed."""
    paths = (user_grid.runs / "store" / "predictions").glob("*/*.parquet")
    stored = pq.read_table(max(paths, key=lambda path: path.stat().st_mtime_ns))
    truth = labels(user_grid, "outline", np.arange(35))
    check_predictions(stored, logits.double(), truth)
    assert row.accuracy == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())


def test_checkpoints_of_open_clip_are_the_classifiers_that_open_clip_makes_of_them(
    user_grid, open_clip, clips
):
    # As its training script saves, on several GPUs.
    state = {f"module.{name}": tensor for name, tensor in clips[1].state_dict().items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": state}, user_grid.folder / "B.pt")
    for name, suffix, model in zip("AB", ("safetensors", "pt"), clips, strict=True):
        (row,) = rows(user_grid, name, "outline", arch=ARCH, suffix=suffix)
        unit_NE = embeddings(open_clip, user_grid, model)
        check(user_grid, row, unit_NE @ tiny_clip.head(open_clip, model))


def test_between_checkpoints_of_open_clip_towers_and_heads_are_averaged(
    user_grid, open_clip, clips
):
    (row,) = rows(user_grid, "AB", "outline", arch=ARCH, alphas=[0.25])
    heads = [tiny_clip.head(open_clip, model) for model in clips]
    with torch.no_grad():
        for first, second in zip(clips[0].parameters(), clips[1].parameters(), strict=True):
            first.lerp_(second, 0.25)
    check(user_grid, row, embeddings(open_clip, user_grid, clips[0]) @ torch.lerp(*heads, 0.25))


def test_an_open_clip_tower_that_was_fine_tuned_brings_its_head(user_grid, open_clip, clips):
    """A checkpoint as the engine writes it can be interpolated with its zero-shot model."""
    resolved = user_models.resolve(ARCH, parsed([f"model.image_size={SIZE}"]))
    store, file = Store(user_grid.runs / "store"), user_grid.folder / "A.safetensors"
    zero_shot = user_models.cell_of(resolved, store, file, CLASSES).state()
    tuned = zero_shot | {"head.bias": torch.arange(5.0)}
    save_file(tuned, user_grid.folder / "T.safetensors")
    (row,) = rows(user_grid, "AT", "outline", arch=ARCH, alphas=[0.5])
    unit_NE = embeddings(open_clip, user_grid, clips[0])
    check(user_grid, row, unit_NE @ tiny_clip.head(open_clip, clips[0]) + torch.arange(5.0) / 2)


def test_what_is_wrong_with_open_clips_checkpoints_is_named(user_grid, clips):
    checkpoint(user_grid.folder / "V.safetensors", 0)
    state = clips[0].state_dict()
    del state["visual.proj"]
    save_file(state, user_grid.folder / "P.safetensors")
    for name, words, arch, message in (
        ("A", (), VIT, r"A\.safetensors has no head.*--arch open_clip:NAME\)\?"),
        ("A", (), "open_clip:tiny-clap", r"no model 'tiny-clap'; did you mean 'tiny-clip'"),
        ("A", ("model.weights.tag=x",), ARCH, r"no weights 'x' for tiny-clip"),
        ("V", (), ARCH, r"V\.safetensors does not fit Tower: visual\."),
        ("P", (), ARCH, r"P\.safetensors does not fit CLIP: visual.proj is"),
    ):
        with pytest.raises(ValueError, match=message):
            rows(user_grid, name, "outline", *words, arch=arch)


def test_images_are_made_as_the_named_weights_of_open_clip_want(open_clip):
    keys = ("mean", "std", "interpolation")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (61, 97, 3), dtype=np.uint8))
    compared = {}
    for name, tag in open_clip.list_pretrained():
        expected = open_clip.get_pretrained_cfg(name, tag)
        actual = preprocessing.clip_data_config(f"open_clip:{name}", tag)
        assert [actual[key] for key in keys] == [expected[key] for key in keys], (name, tag)
        how = (expected["interpolation"], expected["resize_mode"])
        if how in compared:
            continue
        recipe = ModelRecipe(
            name="m", arch=f"open_clip:{name}", image_size=32, weights=WeightsRecipe(tag=tag)
        )
        cfg = open_clip.transform.PreprocessCfg(
            size=32, **{k: expected[k] for k in (*keys, "resize_mode")}
        )
        by_open_clip = open_clip.transform.image_transform_v2(cfg, is_train=False)(image)
        pixels = torch.from_numpy(preprocessing.transform(recipe)(image)).permute(2, 0, 1)
        by_engine = models.Normalize(recipe, torch.device("cpu"))(pixels[None])[0]
        assert_near(by_engine, by_open_clip, atol=1e-5)
        compared[how] = by_engine
    assert len(compared) == 4, "bilinear and bicubic, cropped and squashed"


def test_without_a_tag_images_are_as_all_weights_of_open_clip_want_them(open_clip):
    def preparation(name: str, tag: str = "") -> tuple:
        config = preprocessing.clip_data_config(f"open_clip:{name}", tag)
        return config["mean"], config["interpolation"], config["crop_mode"]

    usual = preparation("ViT-B-16")
    assert usual[1:] == ("bicubic", "center")
    assert preparation("ViT-B-16-SigLIP") == ((0.5, 0.5, 0.5), "bicubic", "squash"), "they agree"
    assert preparation("ViT-L-14") == usual, "they do not agree"
    assert preparation("ViT-L-14", "laion2b_s32b_b82k") == ((0.5, 0.5, 0.5), *usual[1:])
