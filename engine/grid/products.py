"""What a job leaves in the store that a campaign's results and exports are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from engine.evaluation import cka, sample
from engine.grid import snapshots
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import Artifact
from engine.store.cells import Mix, essential


def cells_of(run: Run, mixes: Sequence[Mix]) -> Iterator[Artifact]:
    """The cells that mixes are made of.

    Weights of snapshots are removed on purpose and are left out.
    """
    for name in {name for mix in mixes for name in essential(mix)}:
        cell = cells.find(run.store, name)
        if cell is not None and cell.artifact.kind != snapshots.KIND:
            yield cell.artifact


def predictions(
    run: Run, mixes: Sequence[Mix], compared: Sequence[Mix], names: Iterable[str]
) -> Iterator[Artifact]:
    """The predictions of mixes on the named sets, and CKA of those that are `compared`."""
    samples = sample.draw_all(run)
    for name in names:
        split = sample.split_of(run.recipe, name)
        artifacts = [sample.find(run, mix, name, split, samples.get(name)) for mix in mixes]
        if run.recipe.evaluate.cka:
            artifacts += [cka.find(run, mix, name) for mix in compared]
        yield from filter(None, artifacts)
