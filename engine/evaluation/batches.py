"""Batches of a set for this rank, and what models make of them, gathered from all ranks."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from engine.data.sets import LabelledSet
from engine.evaluation.bank import Forward, Model
from engine.machine import precision, ranks
from engine.run import Run
from loaders.batch import Batch


def chunks(run: Run, positions: np.ndarray) -> list[np.ndarray]:
    size = run.recipe.evaluate.batch_size
    return [positions[i : i + size] for i in range(0, len(positions), size)]


def read(
    run: Run, labelled: LabelledSet, pieces: Sequence[np.ndarray], label: str
) -> Generator[Iterator[Batch], None, None]:
    """This rank's batches of each piece; one reader runs ahead through all pieces.

    Its progress bar ends with it: batches are to be used while it is open.
    """
    of_rank = []
    for piece in pieces:
        of_piece = chunks(run, piece)
        numbers = np.array_split(np.arange(len(of_piece)), ranks.world())[ranks.rank()]
        of_rank.append([of_piece[number] for number in numbers])
    source = run.sets.source(labelled.name)
    positions = itertools.chain.from_iterable(of_rank)
    quiet = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    count = sum(map(len, of_rank))
    batches = source.batches(positions)
    with tqdm(batches, label, count, unit="batch", leave=False, disable=quiet) as bar:
        shown = iter(bar)
        for of_piece in of_rank:
            yield itertools.islice(shown, len(of_piece))


def seconds_to_read(run: Run, labelled: LabelledSet, places: np.ndarray) -> float:
    """An estimate for the images at `places` (int64 [n]), the same on all ranks.

    Each rank reads a batch, where there are as many, and the slowest is waited for.
    """
    parts = chunks(run, places)
    first = np.concatenate(parts[: ranks.world()])
    start = time.perf_counter()
    with closing(read(run, labelled, [first], "try")) as pieces:
        for _ in next(pieces):
            pass
    slowest = -ranks.least(start - time.perf_counter())
    return slowest * math.ceil(len(parts) / ranks.world())


def reduced(
    forward: Forward,
    bank: Sequence[Model],
    batches: Iterable[Batch],
    kind: str,
    reduce: Callable[[np.ndarray, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """`reduce(index, outputs)` [n, ...] of every model for the batches of all ranks, in order."""
    kept: list[list[torch.Tensor]] = [[] for _ in bank]
    with torch.inference_mode(), precision.autocast(kind, forward.device):
        for batch in batches:
            x_BCHW = forward.normalize(batch.images)
            for model, mine in zip(bank, kept, strict=True):
                mine.append(reduce(batch.index, forward(model, x_BCHW)))
    return [_gathered(mine, forward.device) for mine in kept]


def _gathered(kept: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if ranks.world() == 1:
        return torch.cat(kept)
    mine = torch.cat(kept) if kept else torch.zeros(0, 0, device=device)
    sizes = torch.zeros(ranks.world(), 2, dtype=torch.int64, device=device)
    sizes[ranks.rank()] = torch.tensor(mine.shape)
    dist.all_reduce(sizes)
    rows, columns = int(sizes[:, 0].max()), int(sizes[:, 1].max())
    padded = mine.new_zeros(rows, columns)
    padded[: mine.shape[0], : mine.shape[1]] = mine
    parts = [torch.empty_like(padded) for _ in range(ranks.world())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes[:, 0].tolist(), strict=True)])
