"""Problems that share a GPU, a stream each, against one after another; skipped without a GPU."""

import numpy as np
import pytest
import torch

from helpers.children import NEEDS_GPU
from helpers.clouds import CLASSES, labelled

pytest.importorskip("msgspec")  # the engine's, which a bare machine has not
from engine.otdd import solve
from engine.otdd.problems import DistanceOptions, LabelledFeatures
from engine.otdd.solve import matrix

pytestmark = NEEDS_GPU
CUDA = torch.device("cuda")


@pytest.mark.parametrize("options", [{}, {"debias": False}])
def test_a_matrix_is_that_of_one_after_another(options, monkeypatch):
    clouds = {name: labelled(700, seed, 0.2 * seed) for seed, name in enumerate("abcde")}
    sets = {name: LabelledFeatures(*(t.to(CUDA) for t in cloud)) for name, cloud in clouds.items()}
    assert solve.workers(10, 1, 10, CUDA) > 1
    beside = matrix(sets, CLASSES, DistanceOptions(**options))
    monkeypatch.setattr(solve, "_STREAMS", 1)
    alone = matrix(sets, CLASSES, DistanceOptions(**options))
    assert np.isfinite(alone.values).all()
    np.testing.assert_allclose(beside.values, alone.values, rtol=1e-9)
