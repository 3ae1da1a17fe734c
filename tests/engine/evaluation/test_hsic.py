"""The estimator of CKA: against its formula in NumPy, and the laws that it must obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_cka import plain_cka, plain_hsic

from engine.evaluation import hsic


def cka(pairs) -> float:
    """The same by the engine, of a single layer."""
    sums = torch.zeros(3, 1, dtype=torch.float64)
    for x, y in pairs:
        a, b = (hsic.centred(hsic.gram(torch.from_numpy(f))[None]) for f in (x, y))
        sums += torch.stack([hsic.hsic(a, b), hsic.hsic(a, a), hsic.hsic(b, b)])
    return hsic.cka(sums).item()


def features(rng, n: int, width: int) -> np.ndarray:
    return rng.normal(size=(n, width)) + rng.normal(size=width)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 30), st.integers(1, 12), st.integers(1, 12))
def test_hsic_is_its_formula(seed, n, wide, narrow):
    rng = np.random.default_rng(seed)
    x, y = features(rng, n, wide), features(rng, n, narrow)
    a, b = (hsic.centred(hsic.gram(torch.from_numpy(f))[None]) for f in (x, y))
    size = np.sqrt(plain_hsic(x, x) ** 2 + 1) * np.sqrt(plain_hsic(y, y) ** 2 + 1)
    assert hsic.hsic(a, b).item() == pytest.approx(plain_hsic(x, y), abs=1e-4 * size)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 20), st.floats(0.01, 100))
def test_turning_scaling_and_moving_features_changes_nothing(seed, n, scale):
    rng = np.random.default_rng(seed)
    x, y = features(rng, n, 7), features(rng, n, 7)
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    moved = scale * y @ turn + 3
    assert cka([(x, moved)]) == pytest.approx(cka([(x, y)]), abs=2e-3, nan_ok=True)
    assert cka([(x, scale * x @ turn + 3)]) == pytest.approx(1, abs=1e-4)


def test_a_large_mean_leaves_the_digits():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16, 5))
    assert cka([(x + 1e4, y)]) == pytest.approx(plain_cka([(x, y)]), abs=1e-2)


def test_images_are_compared_as_wholes_and_autocast_keeps_fp32():
    maps = torch.randn(6, 3, 4, 4, generator=torch.manual_seed(0)).to(
        memory_format=torch.channels_last
    )
    expected = hsic.gram(maps.reshape(6, 48))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gram = hsic.gram(maps)
    assert gram.dtype == torch.float32 and torch.equal(gram, expected)


def test_features_that_do_not_vary_have_no_cka():
    x = np.random.default_rng(0).normal(size=(8, 3))
    assert np.isnan(cka([(x, np.ones((8, 3)))]))
    assert np.isnan(cka([(np.ones((8, 3)), x)]))
