"""Users' own checkpoints of open_clip: classifiers, mixes and images are open_clip's."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from grids import CLASSES, SIZE, Grid, grid, labels, listing
from own_checkpoints import checkpoint, own, rows
from PIL import Image
from safetensors.torch import save_file

from engine import models
from engine.errors import RecipeError
from engine.evaluation import user_models
from engine.models import clip
from engine.recipe.schema import ModelRecipe, WeightsRecipe
from engine.store.artifacts import Store

__all__ = ["grid", "own"]
TINY_CLIP = "open_clip:tiny-clip"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2
    },
}  # fmt: skip


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


def check(own: Grid, row: user_models.Row, logits: torch.Tensor) -> None:
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
    model = user_models.resolve(TINY_CLIP, [f"model.image_size={SIZE}"]).model
    made = user_models.cell_of(
        model, Store(own.runs / "store"), own.folder / "A.safetensors"
    ).state()
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
