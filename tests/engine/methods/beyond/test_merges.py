"""Merges against float64 restatements: LiNeS, Model Stock, MonoSoup, Iso-C, TIES, and task
arithmetic."""

import re

import numpy as np
import pytest
import timm
import torch

from engine.cells.build import Builder
from engine.methods.beyond import iso_c, lines, model_stock, mono_soup, ties
from helpers.grids import CONV, VIT, Grid, weights
from helpers.twins import assert_near

BLOCK = {VIT: r"blocks\.(\d+)\.", CONV: r"blocks\.(\d+\.\d+)\."}
FEW = ("train.epochs=1", "train.batch_size=5", "train.freeze_batchnorm=false")
State = dict[str, np.ndarray]
STOCK = [("fine_tune", 1000 * number) for number in range(3)]  # methods and their seeds
TASKS = ("fine_tune", "ewc", "lwf")
OF_TASKS = [(method, 0) for method in TASKS]


def built(grid: Grid, *words: str) -> tuple[Builder, State, State, set[str]]:
    """A merge's builder, the pretrained and the merged state in float64, and the parameters."""
    builder, cell = grid.build(*FEW, *words)
    net = builder.network(builder.base)
    before = {k: t.double().numpy() for k, t in builder.base.state().items()}
    merged = {k: t.double().numpy() for k, t in weights(cell).items()}
    assert merged.keys() == before.keys()
    return builder, before, merged, {name for name, _ in net.named_parameters()}


def state(builder: Builder, method: str, seed: int = 0) -> State:
    cell = builder.cell(method, seed=seed)
    return {k: t.double().numpy() for k, t in weights(cell).items()}


def close(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert_near(
        torch.from_numpy(actual), torch.from_numpy(expected), rtol=1e-5, atol=1e-6, name=name
    )


@pytest.mark.parametrize("arch", [VIT, CONV])
def test_lines_scales_each_block_by_its_place(grid, arch):
    words = (f"model.arch={arch}", "method=lines", "method.alpha=0.3", "method.beta=0.6")
    builder, before, merged, parameters = built(grid, *words)
    tuned = state(builder, "fine_tune")
    blocks: list[str] = []
    for name in parameters:
        if (place := re.match(BLOCK[arch], name)) and place[1] not in blocks:
            blocks.append(place[1])
    blocks.sort(key=lambda block: [int(part) for part in block.split(".")])
    assert len(blocks) > 3
    moved = 0
    for name in parameters:
        scale = 0.3
        if place := re.match(BLOCK[arch], name):
            scale += 0.6 * blocks.index(place[1]) / (len(blocks) - 1)
        close(merged[name], before[name] + scale * (tuned[name] - before[name]), name)
        moved += not np.array_equal(merged[name], before[name])
    assert moved > len(parameters) / 2


def test_depths_follow_each_family_of_models():
    for arch, blocks in (("resnet18", 8), ("vit_base_patch16_clip_224.openai", 12)):
        with torch.device("meta"):
            net = timm.create_model(arch, num_classes=2)
        depths = lines.relative_depths(net)
        assert sorted(set(depths.values())) == pytest.approx(np.linspace(0, 1, blocks))
        assert depths.keys() == dict(net.named_parameters()).keys()
    outside = [name for name in depths if not name.startswith("blocks.")]
    assert {"norm_pre.weight", "norm.weight", "head.weight"} < {*outside}
    assert not any(depths[name] for name in outside)
    with pytest.raises(ValueError, match=r"order of Linear's layers: choose one of timm's models"):
        lines.relative_depths(torch.nn.Linear(2, 2))


def stock(before: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """The formula for one tensor, pair by pair."""
    d = [member.ravel() - before.ravel() for member in members]
    n = len(d)
    cosines = [
        a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 0.0
        for i, a in enumerate(d)
        for b in d[i + 1 :]
    ]
    c = max(sum(cosines) / len(cosines), 0)
    t = n * c / (1 + (n - 1) * c)
    return t * np.mean(members, axis=0) + (1 - t) * before


def mono(before: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """The formula for one matrix, direction by direction."""
    (tuned,) = members
    if tuned.ndim < 2:
        return tuned
    change = (tuned - before).reshape(len(tuned), -1)
    u, s, v = np.linalg.svd(change, full_matrices=False)
    shares = [value / sum(s) for value in s if value]
    k = int(np.ceil(np.exp(-sum(p * np.log(p) for p in shares))))
    after = [number for number in range(len(s)) if number >= k]
    if not shares or not after:
        return tuned
    rho = (s[k] / s[0]) ** 2
    low = rho + (1 - rho) * np.sqrt(sum(s[i] ** 2 for i in after) / sum(s**2))
    weights = np.array([low if i in after else 1 - low for i in range(len(s))])
    return before + (u @ np.diag(weights * s) @ v).reshape(before.shape)


def summed(before: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Task arithmetic."""
    return before + 0.4 * sum(member - before for member in members)


@pytest.mark.parametrize(
    ("words", "members", "formula"),
    [
        ((f"model.arch={CONV}", "method=model_stock", "method.seeds=3"), STOCK, stock),
        (("method=mono_soup", "optimizer.lr=0.5"), STOCK[:1], mono),
        (("method=mono_soup", "optimizer.lr=0.05", f"model.arch={CONV}"), STOCK[:1], mono),
        (("method=task_arithmetic",), OF_TASKS, summed),
    ],
)
def test_a_merge_is_its_formula_tensor_by_tensor(grid, words, members, formula):
    builder, before, merged, parameters = built(grid, *words)
    states = [state(builder, *member) for member in members]
    changed = 0
    for name in parameters:
        tensors = [each[name] for each in states]
        expected = formula(before[name], tensors)
        actual = torch.from_numpy(merged[name])
        assert_near(actual, torch.from_numpy(expected), rtol=1e-4, atol=1e-5, name=name)
        changed += not np.allclose(expected, np.mean(tensors, axis=0), rtol=1e-3, atol=1e-4)
    assert changed > 10, "a mean of the members would not show"
    for name in before.keys() - parameters:  # running statistics, and counts of batches
        mean = np.mean([each[name] for each in states], axis=0)
        close(merged[name], before[name] if name.endswith("tracked") else mean, name)


@pytest.mark.parametrize("arch", [VIT, CONV])
def test_iso_c_keeps_singular_vectors_and_equals_the_values(grid, arch):
    """A matrix C whose singular values are all c, and whose inner product with D is c |D|_*, has
    D's singular vectors. Small ones of D are rounding, so comparing numbers would not do."""
    words = ("method=iso_c", "method.scale=0.4", f"model.arch={arch}")
    builder, before, merged, parameters = built(grid, *words)
    states = [state(builder, method) for method in TASKS]
    matrices = 0
    for name in parameters:
        changes = [each[name] - before[name] for each in states]
        total, change = np.squeeze(sum(changes)), np.squeeze(merged[name] - before[name])
        if total.ndim != 2:
            close(change, np.squeeze(0.4 * np.mean(changes, axis=0)), name)
            continue
        values = np.linalg.svd(total, compute_uv=False)
        c = 0.4 * values.mean()
        np.testing.assert_allclose(np.linalg.svd(change, compute_uv=False), c, rtol=2e-3)
        np.testing.assert_allclose((change * total).sum(), c * values.sum(), rtol=1e-3)
        matrices += values[0] > 2 * values.mean()
    assert matrices > 3, "equal values already: this test sees no change"


def merged_by_ties(vectors: list[np.ndarray], density: float, places: np.ndarray) -> np.ndarray:
    """Algorithm 1 of the paper, number by number, at some places."""
    trimmed = []
    for vector in vectors:
        largest = np.argsort(-np.abs(vector), kind="stable")[: round(density * len(vector))]
        trimmed.append(np.zeros_like(vector))
        trimmed[-1][largest] = vector[largest]
    out = np.zeros(len(places))
    for number, place in enumerate(places):
        values = [vector[place] for vector in trimmed]
        elected = np.sign(sum(values))
        agreeing = [value for value in values if value and np.sign(value) == elected]
        out[number] = sum(agreeing) / len(agreeing) if agreeing else 0
    return out


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_ties_trims_elects_and_averages(grid, density):
    builder, before, merged, parameters = built(
        grid, "method=ties", f"method.density={density}", "method.scale=0.7"
    )
    names = sorted(parameters)

    def flat(of: State) -> np.ndarray:
        return np.concatenate([of[name].ravel() for name in names])

    vectors = [flat(state(builder, m)) - flat(before) for m in TASKS]
    vectors = [v.astype(np.float32).astype(float) for v in vectors]  # ties of trimming alike
    places = np.random.default_rng(0).permutation(len(vectors[0]))[:5000]
    change = 0.7 * merged_by_ties(vectors, density, places)
    actual = (flat(merged) - flat(before))[places]
    assert (change == 0).mean() > 0.3 if density < 1 else (change == 0).mean() < 0.1
    wrong = np.abs(actual - change) > 1e-6
    assert wrong.mean() < 1e-4 and np.abs(change).max() > 1e-3


def test_changes_of_nothing_of_one_direction_and_of_equal_sizes():
    """Where the formulas divide by zero, or weigh against an empty rest."""
    offset = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model_stock.stocked([offset, offset, offset]), offset)
    for other in (-offset, 0 * offset):
        assert not model_stock.stocked([offset, other]).any()
    line = torch.outer(torch.arange(1.0, 5.0), torch.arange(1.0, 4.0))  # one direction
    for change in (0.3 * torch.eye(4), torch.zeros(3, 2), offset[:1], line):
        torch.testing.assert_close(mono_soup.reweighed(change), change)
    assert ties.trimmed(torch.tensor([1.0, -1.0, 0.5]), 0.34).tolist() == [1.0, -1.0, 0]
    turn, _ = torch.linalg.qr(offset.T @ offset + torch.eye(4))
    halves = torch.stack([0.25 * turn, 0.75 * turn])[:, :, None]  # their sum is isotropic
    torch.testing.assert_close(iso_c.isotropic(halves), turn[:, None])
    assert not iso_c.isotropic(0 * halves).any()
    vectors = torch.tensor([[3.0, 1.0, 0.0, 1.0], [-1.0, -1.0, 2.0, 3.0], [0.0, 0.0, 0.0, -1.0]])
    assert ties.elected_mean(vectors).tolist() == [3.0, 0.0, 2.0, 2.0]
