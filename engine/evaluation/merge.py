"""Mixes of cells, such as WiSE-FT points and soups: their parents are read once for all mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.store.cells import Cell, Mix
from kernels import interpolation


def states(mixes: Sequence[Mix], parents: Mapping[str, Cell], device: torch.device) -> list[dict]:
    """State dicts of mixes over the same parents: fp32 averages of floating tensors.

    Integer buffers are copied from the first parent. Raises ValueError when a parent carries an
    input prompt, which has no average, or when the parents' tensors differ in name or shape.
    """
    names = sorted({name for mix in mixes for name in mix})
    prompted = [name for name in names if parents[name].prompt() is not None]
    if prompted:
        raise ValueError(f"{prompted[0]} has an input prompt and cannot be averaged")
    loaded = [{k: v.to(device) for k, v in parents[n].state().items()} for n in names]
    parents_MP, layout = interpolation.flatten(loaded)
    weights_KM = torch.tensor([[mix.get(n, 0.0) for n in names] for mix in mixes])
    rows_KP = interpolation.interpolate(parents_MP, weights_KM.to(device))
    return [interpolation.views(row, layout) for row in rows_KP]
