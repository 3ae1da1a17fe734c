"""Batches of a dataset for this rank, and models' outputs, gathered from all ranks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist

from engine.evaluation import bank
from engine.machine import precision, ranks
from engine.machine.terminal import progress_bar
from engine.models.execution import Function, Model
from engine.run import Run
from loaders.batches import Batch

Reader = Callable[[Iterable[np.ndarray]], Iterator[Batch]]  # positions of each batch -> batches
Reduce = Callable[[np.ndarray, Sequence[torch.Tensor]], torch.Tensor]  # index, outputs -> rows


def read_batches(
    run: Run, reader: Reader, pieces: Sequence[np.ndarray], label: str
) -> Generator[Iterator[Batch], None, None]:
    """This rank's batches of each piece (int64 [n]); the reader runs ahead through all pieces.

    Use the batches while the generator is open; closing it ends the progress bar.
    """
    size, of_rank = run.recipe.evaluate.batch_size, []
    for piece in pieces:
        batches = [piece[i : i + size] for i in range(0, len(piece), size)]
        numbers = np.array_split(np.arange(len(batches)), ranks.world())[ranks.rank()]
        of_rank.append([batches[number] for number in numbers])
    batches = reader(itertools.chain.from_iterable(of_rank))
    with progress_bar(batches, label, sum(map(len, of_rank)), unit="batch") as bar:
        following = iter(bar)
        for positions in of_rank:
            yield itertools.islice(following, len(positions))


def reduced(
    run: Run,
    inputs: Function,
    models: Sequence[tuple[Sequence[Model], Reduce]],
    batches: Iterable[Batch],
    kind: str,
) -> list[torch.Tensor]:
    """Every reduction [n, ...] of its models' outputs (float32), for the batches of all ranks, in
    order.

    inputs: maps a batch's images to the models' inputs. A shared `embed` runs once per batch. kind:
    fp32 | bf16.
    """
    rows: list[list[torch.Tensor]] = [[] for _ in models]
    with torch.inference_mode(), precision.autocast(kind, run.device):
        for batch in batches:
            x = inputs(batch.images)
            embedded = functools.cache(lambda embed, x=x: bank.forward(embed, x))
            output = functools.cache(lambda model, embed=embedded: model.head(embed(model.embed)))
            for (members, reduce), parts in zip(models, rows, strict=True):
                parts.append(reduce(batch.index, [output(model) for model in members]))
    return [_gathered(parts, run.device) for parts in rows]


def alone(_: np.ndarray, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The reduction to the outputs themselves, of a single model."""
    (x_BD,) = outputs
    return x_BD


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
