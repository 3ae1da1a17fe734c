"""CLIP of open_clip and timm, in and out: classifiers, mixes, images and logits are theirs."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from engine import cli, models
from engine.evaluation.accuracies import OnSet
from engine.exchange import user_models
from engine.exchange.export import DescribedModel, write_model
from engine.model_files.weights import load_model
from engine.recipe import image_transform
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe, WeightsRecipe
from engine.store.artifacts import Store
from helpers import campaigns, tiny_clip
from helpers.evaluations import check_predictions
from helpers.grids import CLASSES, SIZE, VIT, Grid, labels, same
from helpers.tiny_clip import ARCH
from helpers.twins import assert_near
from helpers.user_checkpoints import checkpoint, rows

IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def logits(embedding: torch.Tensor, folder: Path) -> torch.Tensor:
    """As the command says: linear(normalize(embedding), *head.safetensors)."""
    head = load_file(folder / "head.safetensors")
    return functional.linear(functional.normalize(embedding, dim=-1), head["weight"], head["bias"])


def row(model: ModelRecipe, net: torch.nn.Module) -> DescribedModel:
    return DescribedModel("soup on few", {"a": 1.0}, model, CLASSES, net.state_dict())


def test_timms_tower_has_the_embedding_and_the_head_lies_beside_it(tmp_path):
    model = ModelRecipe(name="m", arch="test_vit", image_size=SIZE, projection=24, crop=0.8)
    torch.manual_seed(0)
    net = models.create(model, len(CLASSES)).eval()
    torch.nn.init.normal_(models.head(net).bias)
    how = write_model(row(model, net), tmp_path / "m")
    assert "the vision tower, gives the embedding" in how
    loaded = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert loaded.pretrained_cfg["crop_pct"] == 0.8
    with torch.inference_mode():
        assert torch.equal(logits(loaded(IMAGES), tmp_path / "m"), net(IMAGES))


def test_a_merge_of_open_clips_checkpoints_is_open_clips_model(
    open_clip: ModuleType, tmp_path: Path, capsys
):
    files = [tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"]
    clips = [tiny_clip.drawn(open_clip, seed) for seed in (0, 1)]
    for file, each in zip(files, clips, strict=True):
        save_file(each.state_dict(), file)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    out = tmp_path / "out"
    words = ["merge", "wise_ft", str(files[0]), "--base", str(files[1]), "--arch", ARCH]
    words += ["--classes", str(tmp_path / "classes.txt"), "--out", str(out), "method.alpha=0.25"]
    assert cli.main([*words, f"runs={tmp_path}", "device=cpu"]) == 0
    assert "both towers; the text tower is the pretrained one" in capsys.readouterr().out
    loaded = open_clip.create_model(f"local-dir:{out}").eval()
    # The engine's own model, of the average that the command made.
    resolved = user_models.resolve(ARCH, [])
    store = Store(tmp_path / "store")
    tuned, base = (user_models.cell_of(resolved, store, file, CLASSES).state() for file in files)
    mean = {k: torch.lerp(v, tuned[k], 0.25) for k, v in base.items()}
    net = models.load_state(models.create(resolved.model, len(CLASSES)), mean, "mean").eval()
    with torch.inference_mode():
        embedding = loaded.encode_image(IMAGES)
        torch.testing.assert_close(logits(embedding, out), net(IMAGES), rtol=1e-5, atol=1e-5)
        tower = load_file(out / "open_clip_model.safetensors")
        head = load_file(out / "head.safetensors")
        exact = {k: tower[k] for k in tower if k.startswith("visual.")}
        exact |= {f"head.{k}": v for k, v in head.items()}
        net = models.load_state(net, exact, "exported").eval()
        assert torch.equal(logits(embedding, out), net(IMAGES))
        text = open_clip.get_tokenizer(tiny_clip.NAME)(["a circle"])
        assert torch.equal(loaded.encode_text(text), clips[1].encode_text(text))


def test_what_is_written_is_read(open_clip: ModuleType, user_grid: Grid):
    """By `rib evaluate`, `rib merge` and as a recipe's model, in open_clip's form and in timm's."""
    tiny = ModelRecipe(name="m", arch=ARCH, image_size=SIZE)
    file, runs = user_grid.folder / "clip.safetensors", f"runs={user_grid.runs}"
    clip = tiny_clip.drawn(open_clip)
    save_file(clip.state_dict(), file)
    tiny = dataclasses.replace(tiny, weights=WeightsRecipe(path=str(file), clip=tiny_clip.NAME))
    timms = ModelRecipe(name="m", arch="test_vit", image_size=SIZE, projection=24, crop=0.8)
    for model in (tiny, timms):
        torch.manual_seed(1)
        net, out = models.create(model, len(CLASSES)).eval(), user_grid.folder / "out"
        torch.nn.init.normal_(models.head(net).bias)
        write_model(row(model, net), out)
        resolved, files, classes = user_models.described([out], None, parsed([runs]))
        assert classes == CLASSES and resolved.model.crop == (model.crop or 1.0)
        cell = user_models.cell_of(resolved, Store(user_grid.runs / "store"), files[0])
        assert same(cell.state(), dict(net.state_dict()))
        named = load_recipe("emoji", parsed([f"model=local-dir:{out}"])).model
        assert named.arch == model.arch and named.projection == model.projection
        assert named.head.fit and "their own head" not in image_transform.choices(named)
        table, again = user_grid.folder / "table.csv", user_grid.folder / "again"
        words = ["evaluate", "--models", str(out), "--sets", str(user_grid.folder / "outline")]
        assert cli.main([*words, "--out", str(table), "--force", runs, "device=cpu"]) == 0
        (read,) = campaigns.rows(table)
        if model is tiny:
            loaded = open_clip.create_model(f"local-dir:{out}").eval()
            with torch.inference_mode():
                x = tiny_clip.pixels(open_clip, user_grid, range(35)).float()
                top1 = logits(loaded.encode_image(x), out).argmax(1)
            right = (top1 == labels(user_grid, "outline", np.arange(35))).double().mean().item()
            assert float(read["accuracy_pct"]) == pytest.approx(100 * right)
        words = ["merge", "soup", str(out), str(user_grid.folder / "other"), "--out", str(again)]
        write_model(row(model, models.create(model, len(CLASSES))), user_grid.folder / "other")
        assert cli.main([*words, "--force", runs, "device=cpu"]) == 0
        assert (again / "head.safetensors").is_file()


def test_a_projection_that_was_given_a_bias_is_refused(tmp_path: Path):
    model = ModelRecipe(name="m", arch="test_vit", image_size=SIZE, projection=24)
    write_model(row(model, models.create(model, len(CLASSES))), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file) | {"head.bias": torch.ones(24)}, file)
    with pytest.raises(ValueError, match=r"model\.safetensors: .* projection without bias"):
        load_model(file)


def test_no_file_of_another_model_stays(tmp_path):
    """`rib evaluate FOLDER` would take timm's old weights for the new model's."""
    model = ModelRecipe(name="m", arch="test_vit", image_size=SIZE)
    net, out = models.create(model, len(CLASSES)), tmp_path / "m"
    others = {"open_clip_model.safetensors", "open_clip_config.json", "head.safetensors"}
    out.mkdir()
    for name in (*others, "notes.txt"):
        (out / name).touch()
    write_model(row(model, net), out)
    names = {path.name for path in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "notes.txt"}


def test_without_a_text_tower_the_remedy_is_named(open_clip: ModuleType, tmp_path: Path):
    model = user_models.resolve(ARCH, []).model
    net = models.create(model, len(CLASSES))
    with pytest.raises(ValueError, match="no file contains the text tower"):
        write_model(row(model, net), tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def clips(user_grid: Grid, open_clip: ModuleType) -> list[torch.nn.Module]:
    """The models of which checkpoints A and B are."""
    drawn = [tiny_clip.drawn(open_clip, seed) for seed in (0, 1)]
    for name, model in zip("AB", drawn, strict=True):
        save_file(model.state_dict(), user_grid.folder / f"{name}.safetensors")
    return drawn


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
    assert row.accuracy_pct == pytest.approx(
        100 * (logits.argmax(1) == truth).double().mean().item()
    )


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
        ("A", (), VIT, r"A\.safetensors has open_clip's names: give --arch open_clip:NAME"),
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
        actual = image_transform.clip_data_config(f"open_clip:{name}", tag)
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
        pixels = torch.from_numpy(image_transform.transform(recipe)(image)).permute(2, 0, 1)
        by_engine = models.Normalize(recipe, torch.device("cpu"))(pixels[None])[0]
        assert_near(by_engine, by_open_clip, atol=1e-5)
        compared[how] = by_engine
    assert len(compared) == 4, "bilinear and bicubic, cropped and squashed"


def test_without_a_tag_images_are_as_all_weights_of_open_clip_want_them(open_clip):
    def preparation(name: str, tag: str = "") -> tuple:
        config = image_transform.clip_data_config(f"open_clip:{name}", tag)
        return config["mean"], config["interpolation"], config["crop_mode"]

    usual = preparation("ViT-B-16")
    assert usual[1:] == ("bicubic", "center")
    assert preparation("ViT-B-16-SigLIP") == ((0.5, 0.5, 0.5), "bicubic", "squash"), "they agree"
    assert preparation("ViT-L-14") == usual, "they do not agree"
    assert preparation("ViT-L-14", "laion2b_s32b_b82k") == ((0.5, 0.5, 0.5), *usual[1:])
