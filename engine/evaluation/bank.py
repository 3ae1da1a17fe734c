"""A bank of models that see the same images, in groups that fit on the device together.

An ensemble needs the logits of its members together, so they stand in its group. A member that is
evaluated by itself too runs once for both. The images are read once a group.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from engine import models
from engine.machine import ranks
from engine.models.form import Backbone, Form
from engine.run import Run
from engine.store.cells import Average, Cell, Ensemble, Mix
from engine.store.tensors import WEIGHTS
from kernels import interpolation
from loaders.resident import free_memory

log = logging.getLogger(__name__)
Model = Callable[[torch.Tensor], torch.Tensor]
Group = Sequence[Average]
WEIGHTS_SHARE = 0.5  # of the free memory; the rest is for images and activations


def loaded(
    run: Run, averages: Group, parents: Mapping[str, Cell]
) -> Iterator[tuple[Group, list[list[Model]]]]:
    """The averages in groups, and the models of each, on the device; its logits are their mean.

    Drop a group's models before the next. Raises ValueError, naming its members, for an ensemble
    that does not fit on the device.
    """
    form = Form.of(run.recipe.evaluate, run.device)
    backbone = form.backbone(run.recipe.model, len(run.sets.classes), run.device)
    members = {name for average in averages for name in average}
    largest = max(parents[name].artifact.file(WEIGHTS).stat().st_size for name in members)
    # Mixed parents are in memory twice, as files and as the rows that are averaged.
    extra = 2 * max(len(mix) for average in averages for mix in mixes_of(average))
    room = WEIGHTS_SHARE * free_memory(run.device) / largest - extra
    in_groups = groups(averages, max(1, int(ranks.least(room))))
    if len(in_groups) > 1:
        log.info(
            "%d models do not fit together: the set is read once for each of %d groups",
            len(averages),
            len(in_groups),
        )
    for group in in_groups:
        yield group, _of_group(backbone, run, group, parents)


def _of_group(
    backbone: Backbone, run: Run, group: Group, parents: Mapping[str, Cell]
) -> list[list[Model]]:
    mixes = {_key(mix): mix for average in group for mix in mixes_of(average)}
    models = dict(zip(mixes, load(backbone, run, list(mixes.values()), parents), strict=True))
    return [[models[_key(mix)] for mix in mixes_of(average)] for average in group]


def forward(model: Model, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Outputs [B, ...] (float32) of normalised images."""
    return model(x_BCHW).float()


def mixes_of(average: Average) -> list[Mix]:
    """The models that an average needs: its members where it is an ensemble, or the mix itself."""
    return [{name: 1.0} for name in average] if isinstance(average, Ensemble) else [average]


def _key(mix: Mix) -> tuple[tuple[str, float], ...]:
    return tuple(mix.items())


def groups(averages: Group, size: int) -> Sequence[Group]:
    """The averages in groups that need at most `size` models; mixes of the same parents stand
    together.

    Ensembles come first, and each average joins the group that needs the fewest models more.
    Raises ValueError for an ensemble of more than `size` models.
    """
    groups: list[list[Average]] = []
    models: list[set[Any]] = []
    for average in sorted(averages, key=lambda a: (not isinstance(a, Ensemble), len(a), tuple(a))):
        needs = {_key(mix) for mix in mixes_of(average)}
        if len(needs) > size:
            raise ValueError(
                f"the ensemble of {', '.join(average)} needs {len(needs)} models at a time, and "
                f"{size} fit: name fewer under method.members, or give the job more memory"
            )
        free = [k for k, there in enumerate(models) if len(there | needs) <= size]
        if not free:
            free = [len(groups)]
            groups.append([])
            models.append(set())
        place = min(free, key=lambda k: len(needs - models[k]))
        groups[place].append(average)
        models[place] |= needs
    return groups


def states(
    run: Run, siblings: Sequence[Mix], parents: Mapping[str, Cell]
) -> Iterable[dict[str, torch.Tensor]]:
    """State dicts on the device of mixes that have the same parents."""
    first, *more = siblings[0]
    cell = parents[first]
    if more:
        return mixed(siblings, parents, run.device)
    if cell.artifact.kind == "weights" and run.recipe.model.head.fit:
        return [run.network(cell).state_dict()]  # with the head that it lacks
    return [{k: v.to(run.device) for k, v in cell.state().items()}]


def mixed(mixes: Sequence[Mix], parents: Mapping[str, Cell], device: torch.device) -> list[dict]:
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


def load(
    backbone: Backbone, run: Run, mixes: Sequence[Mix], parents: Mapping[str, Cell]
) -> list[Model]:
    """The mixes' models, which all run through `backbone`, and its graph where it is compiled."""
    head = models.head_names(run.recipe.model)
    by_members: dict[tuple[str, ...], list[Mix]] = {}
    for mix in mixes:
        by_members.setdefault(tuple(mix), []).append(mix)
    loaded: dict[int, Model] = {}
    for members, siblings in by_members.items():
        for mix, state in zip(siblings, states(run, siblings, parents), strict=True):
            weight, bias = (state.pop(name) for name in head)
            features = functools.partial(backbone.given, backbone.state(state))
            prompt = parents[members[0]].prompt() if len(members) == 1 else None
            prompt_CHW = None if prompt is None else prompt.to(run.device)
            loaded[id(mix)] = functools.partial(_logits, features, weight, bias, prompt_CHW)
    return [loaded[id(mix)] for mix in mixes]


def _logits(
    features: Model,
    weight: torch.Tensor,
    bias: torch.Tensor,
    prompt_CHW: torch.Tensor | None,
    x_BCHW: torch.Tensor,
) -> torch.Tensor:
    features_BD = features(x_BCHW if prompt_CHW is None else x_BCHW + prompt_CHW)
    return models.logits(features_BD, weight, bias)
