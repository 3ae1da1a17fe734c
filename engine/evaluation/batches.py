"""This rank's batches of a set, and models' outputs for them, gathered from all ranks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist

from engine.data.sets import LabelledSet
from engine.evaluation import bank
from engine.evaluation.bank import Model
from engine.machine import bars, precision, ranks
from engine.models import Normalize
from engine.run import Run
from loaders.batch import Batch

Reduce = Callable[[np.ndarray, torch.Tensor], torch.Tensor]  # index, outputs -> rows


def chunks(run: Run, positions: np.ndarray) -> list[np.ndarray]:
    size = run.recipe.evaluate.batch_size
    return [positions[i : i + size] for i in range(0, len(positions), size)]


def read(
    run: Run, labelled: LabelledSet, pieces: Sequence[np.ndarray], label: str
) -> Generator[Iterator[Batch], None, None]:
    """This rank's batches of each piece; one reader runs ahead through all pieces.

    Use the batches while the generator is open: its progress bar ends with it.
    """
    of_rank = []
    for piece in pieces:
        batches = chunks(run, piece)
        numbers = np.array_split(np.arange(len(batches)), ranks.world())[ranks.rank()]
        of_rank.append([batches[number] for number in numbers])
    source = run.sets.source(labelled.name)
    count = sum(map(len, of_rank))
    batches = source.batches(itertools.chain.from_iterable(of_rank))
    with bars.bar(batches, label, count, unit="batch") as bar:
        reader = iter(bar)
        for positions in of_rank:
            yield itertools.islice(reader, len(positions))


def reduced(
    normalize: Normalize,
    models: Sequence[Sequence[Model]],
    batches: Iterable[Batch],
    kind: str,
    reductions: Sequence[Reduce],
) -> list[list[torch.Tensor]]:
    """Each reduction [n, ...] of every mean of models' outputs (float32), for the batches of all
    ranks, in order.

    models: of each mean; a model that several of them have runs once a batch.
    """
    rows: list[list[list[torch.Tensor]]] = [[[] for _ in reductions] for _ in models]
    device = normalize.scale.device
    with torch.inference_mode(), precision.autocast(kind, device):
        for batch in batches:
            x_BCHW = normalize(batch.images)
            output = functools.cache(lambda model, x=x_BCHW: bank.forward(model, x))
            for members, of_mean in zip(models, rows, strict=True):
                outputs = [output(model) for model in members]
                mean = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(dim=0)
                for reduce, parts in zip(reductions, of_mean, strict=True):
                    parts.append(reduce(batch.index, mean))
    return [[_gathered(parts, device) for parts in of_mean] for of_mean in rows]


def _gathered(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if ranks.world() == 1:
        return torch.cat(parts)
    local = torch.cat(parts) if parts else torch.zeros(0, 0, device=device)
    sizes = torch.zeros(ranks.world(), 2, dtype=torch.int64, device=device)
    sizes[ranks.rank()] = torch.tensor(local.shape)
    dist.all_reduce(sizes)
    rows, columns = int(sizes[:, 0].max()), int(sizes[:, 1].max())
    padded = local.new_zeros(rows, columns)
    padded[: local.shape[0], : local.shape[1]] = local
    parts = [torch.empty_like(padded) for _ in range(ranks.world())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes[:, 0].tolist(), strict=True)])
