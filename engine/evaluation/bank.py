"""A batch of models that see the same images, in groups that fit on the device.

An ensemble needs the logits of all its members, so they are in one group. A member that is also
evaluated by itself runs only once. Images are read once per group.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch

from engine import models
from engine.evaluation.reduction import gated
from engine.machine import ranks
from engine.models.execution import Backbone, Form, Function, Model
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import Store
from engine.store.cells import Average, Cell, Ensemble, Mix
from engine.store.tensors import WEIGHTS
from loaders.batches import free_memory

log = logging.getLogger(__name__)
Key = tuple[tuple[str, float], ...]  # a mix that is the same key is the same model
WEIGHTS_SHARE = 0.5  # fraction of the free memory; the rest is for images and activations


class Bank:
    """The models that a run evaluates. Those of the last group stay on the device, so the next
    dataset reads no weights again; its images get the memory that they leave."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._nets: dict[Key, Model] = {}

    def in_groups(
        self,
        averages: Sequence[Average],
        work: Callable[[Sequence[Average], Sequence[Sequence[Model]]], None],
    ) -> None:
        """Call `work` with each group of the averages, and the models that produce their outputs,
        on the device. A group's models are freed once `work` returns.

        Raises ValueError, naming its members, if an ensemble does not fit on the device.
        """
        parts = [averages]
        if not self._has(averages):
            self._nets = {}  # before room for others is measured
            parts = groups(averages, self._room(averages))
        if len(parts) > 1:
            log.info(
                "%d models do not fit together: reading the dataset once for each of %d groups",
                len(averages),
                len(parts),
            )
        for group in parts:
            if not self._has(group):
                self._nets = {}  # before the next are loaded
                mixes = [mix for average in group for mix in mixes_of(average)]
                self._nets = load(self._backbone, self._run, mixes)
            work(group, [outputs_of(average, self._nets, self._run) for average in group])
        if len(parts) > 1:
            self._nets = {}  # the next dataset's images come before its first group

    @cached_property
    def _backbone(self) -> Backbone:
        run = self._run
        form = Form.of(run.recipe.evaluate, run.device)
        return form.backbone(run.recipe.model, len(run.sets.classes), run.device)

    def _has(self, averages: Sequence[Average]) -> bool:
        needs = {key_of(mix) for average in averages for mix in mixes_of(average)}
        return needs <= self._nets.keys()

    def _room(self, averages: Sequence[Average]) -> int:
        """How many models fit on the device of every rank; at least one."""
        run = self._run
        parents = [stored_cell(run.store, name) for average in averages for name in average]
        largest = max(parent.artifact.file(WEIGHTS).stat().st_size for parent in parents)
        # Parents of mixes are in memory twice: as files and as rows to average.
        extra = 2 * max(len(mix) for average in averages for mix in mixes_of(average))
        room = WEIGHTS_SHARE * free_memory(run.device) / largest - extra
        return max(1, int(ranks.least(room)))


def outputs_of(average: Average, nets: Mapping[Key, Model], run: Run) -> list[Model]:
    """The models that produce an average's outputs, members first."""
    members = [nets[key_of(mix)] for mix in mixes_of(average)]
    if not isinstance(average, Ensemble) or average.weights != "failures":
        return members
    reference = stored_cell(run.store, average.reference).reference()
    first, second = members
    return gated(first, second, {k: v.to(run.device) for k, v in reference.items()})


def stored_cell(store: Store, name: str) -> Cell:
    """A cell, or a backbone's weights, by name. Raises FileNotFoundError if missing."""
    cell = cells.find(store, name)
    if cell is None:
        raise FileNotFoundError(
            f"no cell {name} in {store.root}: `rib campaign` or `rib train` makes it again"
        )
    return cell


def forward(embed: Function, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Pre-logits [B, D] (float32) of normalized images."""
    return embed(x_BCHW).float()


def mixes_of(average: Average) -> list[Mix]:
    """The models that an average needs: an ensemble's members, or the mix itself."""
    return [{name: 1.0} for name in average] if isinstance(average, Ensemble) else [average]


def key_of(mix: Mix) -> Key:
    return tuple(mix.items())


def groups(averages: Sequence[Average], size: int) -> list[list[Average]]:
    """The averages in groups of at most `size` models: ensembles first, then mixes with the same
    parents together.

    Raises ValueError for an ensemble of more than `size` models.
    """
    groups: list[list[Average]] = [[]]
    there: set[Key] = set()
    for average in sorted(averages, key=lambda a: (not isinstance(a, Ensemble), len(a), tuple(a))):
        needs = {key_of(mix) for mix in mixes_of(average)}
        if len(needs) > size:
            raise ValueError(
                f"the ensemble of {', '.join(average)} needs {len(needs)} models at a time, but "
                f"only {size} fit: name fewer in method.members, or give the job more memory"
            )
        if len(there | needs) > size:
            groups.append([])
            there = set()
        groups[-1].append(average)
        there |= needs
    return groups


def mixed(mixes: Sequence[Mix], parents: Mapping[str, Cell], device: torch.device) -> list[dict]:
    """State dicts of mixes over the same parents: fp32 averages of floating tensors.

    Integer buffers are copied from the first parent. Raises ValueError if a parent has an input
    prompt, which cannot be averaged, or if the parents' tensors differ in name or shape.
    """
    names = sorted({name for mix in mixes for name in mix})
    prompted = [name for name in names if parents[name].prompt() is not None]
    if prompted:
        raise ValueError(f"{prompted[0]} has an input prompt and cannot be averaged")
    loaded = [{k: v.to(device) for k, v in parents[n].state().items()} for n in names]
    from kernels import interpolation  # late: it imports torch._dynamo, which takes seconds

    parents_MP, layout = interpolation.flatten(loaded)
    weights_KM = torch.tensor([[mix.get(n, 0.0) for n in names] for mix in mixes])
    rows_KP = interpolation.interpolate(parents_MP, weights_KM.to(device))
    return [interpolation.views(row, layout) for row in rows_KP]


def load(backbone: Backbone, run: Run, mixes: Sequence[Mix]) -> dict[Key, Model]:
    """The models of mixes, which all run through `backbone` and its compiled graph, if any."""
    by_members: dict[tuple[str, ...], dict[Key, Mix]] = {}
    for mix in mixes:
        by_members.setdefault(tuple(mix), {})[key_of(mix)] = mix
    loaded: dict[Key, Model] = {}
    for members, siblings in by_members.items():
        parents = {name: stored_cell(run.store, name) for name in members}
        first, prompt_CHW = parents[members[0]], None
        if len(members) > 1:
            states = mixed(list(siblings.values()), parents, run.device)
        else:
            states = [{k: v.to(run.device) for k, v in first.state().items()}]
            prompt_CHW = first.prompt()
        for key, state in zip(siblings, states, strict=True):
            weight, bias = (state.pop(name) for name in models.head_names(run.recipe.model))
            features = functools.partial(backbone.given, backbone.state(state))
            if prompt_CHW is not None:
                features = functools.partial(_prompted, features, prompt_CHW.to(run.device))
            loaded[key] = Model(features, head_of(weight, bias))
    return loaded


def head_of(weight: torch.Tensor, bias: torch.Tensor) -> Function:
    """A linear head, as a function."""
    return lambda features_BD: models.logits(features_BD, weight, bias)


def _prompted(features: Function, prompt_CHW: torch.Tensor, x_BCHW: torch.Tensor) -> torch.Tensor:
    return features(x_BCHW + prompt_CHW)
