"""The fixtures that several rooms share: the drawn benchmark, campaigns on it, and models."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.cost import flops, rates
from helpers.campaigns import finished, folder
from helpers.encoded_rib import rib
from helpers.evaluations import expected, fresh, mixes, small_slices
from helpers.fork_server import forked
from helpers.grids import grid
from helpers.tiny_clip import clip_words, open_clip
from helpers.user_checkpoints import user_grid

__all__ = [
    "clip_words", "expected", "finished", "folder", "forked", "fresh", "grid", "mixes",
    "open_clip", "rib", "small_slices", "user_grid",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def rates_of_first() -> Iterator[None]:
    """This machine is measured once: the rate of the first network stands for those of all."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            *((module, "product_tflops") for module in (rates, flops)), (flops, "forward_tflops")
        ):  # fmt: skip
            patch.setattr(module, name, _first(getattr(module, name)))
        yield


def _first(measure: Callable[..., float]) -> Callable[..., float]:
    measured: list[float] = []

    @functools.wraps(measure)
    def first(*words: Any) -> float:
        if not measured:
            measured.append(measure(*words))
        return measured[0]

    return first
