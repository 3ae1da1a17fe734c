"""CKA: its estimator against formulas in NumPy, of stored models against timm's, what is made."""

from statistics import fmean

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.cells.build import Builder
from engine.errors import RecipeError
from engine.evaluation import bank
from engine.extras.cka import alignment as cka
from engine.recipe.schema import ModelRecipe
from engine.store.cells import Cell
from helpers.grids import CONV, VIT, Grid, images, reference

SET = "tinted"  # 35 images
WORDS = ("evaluate.batch_size=8",)
IMAGES = 30


def plain_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, as it is printed, in float64."""
    k, m = (features @ features.T for features in (x, y))
    n, ones = len(k), np.ones(len(k))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return (
        np.trace(k @ m)
        + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ k @ m @ ones)
    ) / (n * (n - 3))


def plain_cka(pairs) -> float:
    """Nguyen et al. 2021, equation 3: means over minibatches (x, y), then the ratio."""
    cross, before, after = (
        np.mean([plain_hsic(*of(x, y)) for x, y in pairs])
        for of in (lambda x, y: (x, y), lambda x, y: (x, x), lambda x, y: (y, y))
    )
    return cross / np.sqrt(before * after)


def plain(grid: Grid, builder: Builder, cell: Cell, arch: str) -> dict[str, float]:
    """CKA by block in float64, from the stored weights and the images as files."""
    nets = [reference(each.state(), arch) for each in (builder.base, cell)]
    features = [{}, {}]
    for net, outputs in zip(nets, features, strict=True):
        for name, module in net.named_modules():
            module.register_forward_hook(
                lambda _m, _x, out, name=name, outputs=outputs: outputs.__setitem__(name, out)
            )
    pairs = {name: [] for name in cka.blocks_of(builder.recipe.model)}
    for index in cka.minibatches(builder.recipe, builder.sets[SET], IMAGES):
        x = images(grid, SET, index, arch)
        for net in nets:
            with torch.no_grad():
                net(x)
        for name, of_layer in pairs.items():
            of_layer.append([outputs[name].flatten(1).numpy() for outputs in features])
    return {name: plain_cka(of_layer) for name, of_layer in pairs.items()}


@pytest.mark.parametrize("arch, blocks", [(VIT, 6), (CONV, 5)])
def test_cka_of_a_cell_is_its_definition_on_timms_model(grid, arch, blocks):
    builder = grid.builder(f"model.arch={arch}", *WORDS)
    cell = builder.cell("fine_tune")
    cka.evaluate(builder, [{cell.name: 1.0}], SET, IMAGES)
    values = cka.stored(builder, {cell.name: 1.0}, SET, IMAGES)
    expected = plain(grid, builder, cell, arch)
    assert list(values) == list(expected) and len(values) >= blocks
    assert values == pytest.approx(expected, abs=1e-4)
    assert min(expected.values()) < 0.9999


def test_models_are_as_far_as_they_moved(grid):
    """Not at all: the pretrained model and a probe. A mix: less than what it is mixed of."""
    builder = grid.builder(*WORDS)
    methods = ("linear_probe", "fine_tune", "visual_prompt")
    base, *names = builder.base.name, *(builder.cell(method).name for method in methods)
    mixes = [{base: 0.5, names[1]: 0.5}, *({name: 1.0} for name in (base, *names))]
    cka.evaluate(builder, mixes, SET, IMAGES)
    half, *still, whole, prompt = (cka.stored(builder, mix, SET, IMAGES) for mix in mixes)
    for unmoved in still:
        assert unmoved == pytest.approx(dict.fromkeys(half, 1.0), abs=1e-9)
    assert fmean(half.values()) > fmean(whole.values())
    assert min(prompt.values()) < 0.9995


def test_what_is_stored_is_not_made_again_and_other_samples_are(grid, monkeypatch):
    builder = grid.builder(*WORDS)
    mix = {builder.cell("fine_tune").name: 1.0}
    cka.evaluate(builder, [mix], SET, IMAGES)
    made, load = [], bank.load
    monkeypatch.setattr(bank, "load", lambda *a: made.append(a[-1]) or load(*a))
    cka.evaluate(builder, [mix, mix, {**mix, builder.base.name: 0.0}], SET, IMAGES)
    assert not made
    cka.evaluate(builder, [mix], SET, IMAGES - 1)
    assert made == [[{builder.base.name: 1.0}, mix]]
    assert cka.stored(builder, mix, SET, IMAGES - 1) != cka.stored(builder, mix, SET, IMAGES)


def test_minibatches_are_a_seeded_sample_in_even_parts(grid):
    def drawn(*words: str, images: int = IMAGES) -> list[np.ndarray]:
        builder = grid.builder(*words)
        return cka.minibatches(builder.recipe, builder.sets[SET], images)

    parts = drawn(*WORDS)
    sample = np.concatenate(parts)
    assert [len(part) for part in parts] == [8, 8, 7, 7]
    assert len(set(sample.tolist())) == 30 and (np.diff(sample) < 0).any()
    assert np.array_equal(np.concatenate(drawn(*WORDS)), sample)
    assert not np.array_equal(np.concatenate(drawn("dataset.seed=1", *WORDS)), sample)
    sizes = [len(part) for part in drawn("evaluate.batch_size=1", images=1000)]
    assert sum(sizes) == 35 and min(sizes) >= 4


def test_blocks_of_architectures(monkeypatch):
    def names(arch: str) -> tuple[str, ...]:
        return cka.blocks_of(ModelRecipe(name=arch, arch=arch, image_size=32))

    assert names("test_vit") == tuple(f"blocks.{k}" for k in range(6))
    assert names("resnet18")[0] == "layer1.0" and len(names("resnet18")) == 8
    depth = sum(map(len, timm.create_model("tf_efficientnet_lite0").blocks))
    assert len(names("tf_efficientnet_lite0")) == depth == 16
    monkeypatch.setattr(cka, "_blocks", lambda *_: ())
    with pytest.raises(RecipeError, match=r"test_vit is not a chain of blocks.*leave extras"):
        names("test_vit")


def of_pairs(pairs) -> float:
    """CKA of a single layer by the engine."""
    sums = torch.zeros(3, 1, dtype=torch.float64)
    for x, y in pairs:
        a, b = (cka.centred(cka.gram(torch.from_numpy(f))[None]) for f in (x, y))
        sums += torch.stack([cka.hsic(a, b), cka.hsic(a, a), cka.hsic(b, b)])
    return cka.cka(sums).item()


def features(rng, n: int, width: int) -> np.ndarray:
    return rng.normal(size=(n, width)) + rng.normal(size=width)


@given(st.integers(0, 2**31), st.integers(4, 30), st.integers(1, 12), st.integers(1, 12))
def test_hsic_is_its_formula(seed, n, wide, narrow):
    rng = np.random.default_rng(seed)
    x, y = features(rng, n, wide), features(rng, n, narrow)
    a, b = (cka.centred(cka.gram(torch.from_numpy(f))[None]) for f in (x, y))
    size = np.sqrt(plain_hsic(x, x) ** 2 + 1) * np.sqrt(plain_hsic(y, y) ** 2 + 1)
    assert cka.hsic(a, b).item() == pytest.approx(plain_hsic(x, y), abs=1e-4 * size)


def test_a_large_mean_leaves_the_digits():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16, 5))
    assert of_pairs([(x + 1e4, y)]) == pytest.approx(plain_cka([(x, y)]), abs=1e-2)


def test_features_that_do_not_vary_have_no_cka():
    x, still = np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 3))
    assert np.isnan([of_pairs([(x, still)]), of_pairs([(still, x)])]).all()


def test_images_are_compared_as_wholes_and_autocast_keeps_fp32():
    maps = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gram = cka.gram(maps)
    assert gram.dtype == torch.float32 and torch.equal(gram, cka.gram(maps.reshape(6, 48)))
