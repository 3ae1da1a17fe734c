"""A bank of models that see the same images, and which of them fit on the device together.

An ensemble's members stand in one group with it, so that their logits are at hand together; those
that are evaluated anyway run once for both.

For a larger bank the images are read once a group of models. How many images go through a model at
once depends on the memory and not on the bank, so a model's predictions do not depend on the models
beside it. A matrix product of fewer rows may round otherwise, so the last bits of a probability can
differ between machines of which only one cuts batches; the keys of artefacts do not say so. Batches
are halved, so few sizes are possible.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from engine import models
from engine.evaluation import merge
from engine.machine import ranks
from engine.models.form import Backbone, Form
from engine.models.fp32_head import logits
from engine.run import Run
from engine.store import tensors
from engine.store.cells import Average, Cell, Ensemble, Mix
from loaders.resident import free_memory

log = logging.getLogger(__name__)
Model = Callable[[torch.Tensor], torch.Tensor]
Group = Sequence[Average]
# Of the free memory; the rest is for images and for what cannot be foreseen.
WEIGHTS_SHARE, ACTIVATIONS_SHARE = 0.5, 0.25


class Forward:
    """Sends batches through models, in parts that fit into the memory that was free at its start.

    A part is a half, a quarter, ... of a batch: the last bits of outputs may depend on its size.
    """

    def __init__(self, run: Run) -> None:
        self.device = run.device
        self.normalize = models.Normalize(run.recipe.model, run.device)
        self.size = run.recipe.evaluate.batch_size
        self._memory = ACTIVATIONS_SHARE * free_memory(run.device)
        self._part = 0

    def __call__(self, model: Model, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Outputs [B, ...] (float32) of normalised images."""
        if not self._part:
            self._part = self._part_size(model, x_BCHW[:1])
        parts = x_BCHW.tensor_split(-(-len(x_BCHW) // self._part))
        outputs = [model(part).float() for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _part_size(self, model: Model, x_1CHW: torch.Tensor) -> int:
        each = activation_bytes(model, x_1CHW)
        part = self.size
        while part > max(1, self._memory // each):
            part = -(-part // 2)
        if part < self.size:
            log.info(
                "batches of %d run in parts of at most %d: one image takes about %.0f MB",
                self.size,
                part,
                each / 1e6,
            )
        return part


class ModelBank:
    """The models of averages, in groups that fit on the device; one group at a time is there."""

    def __init__(self, run: Run, averages: Group, parents: Mapping[str, Cell]) -> None:
        """ValueError, naming its members, for an ensemble that does not fit on the device."""
        self._run, self._parents = run, parents
        form = Form.of_evaluation(run.recipe, run.device)
        self._backbone = form.backbone(run.recipe.model, len(run.sets.classes), run.device)
        members = {name for average in averages for name in average}
        files = [parents[name].artifact.file(tensors.WEIGHTS) for name in members]
        largest = max(file.stat().st_size for file in files)
        # Mixed parents are in memory twice, as files and as the rows that are averaged.
        extra = 2 * max(len(mix) for average in averages for mix in mixes_of(average))
        models = WEIGHTS_SHARE * free_memory(run.device) / largest - extra
        self.groups = groups(averages, max(1, int(ranks.least(models))))
        if len(self.groups) > 1:
            log.info(
                "%d models do not fit together: the set is read once for each of %d groups",
                len(averages),
                len(self.groups),
            )

    def load(self, group: Group) -> list[list[Model]]:
        """The models whose logits each of the group's averages is the mean of, on the device; those
        of another group must be free by now."""
        mixes = {_key(mix): mix for average in group for mix in mixes_of(average)}
        loaded = _load(self._backbone, self._run, list(mixes.values()), self._parents)
        models = dict(zip(mixes, loaded, strict=True))
        return [[models[_key(mix)] for mix in mixes_of(average)] for average in group]


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


def activation_bytes(model: Model, x_1CHW: torch.Tensor) -> int:
    """An estimate of the memory that one image takes: twice the largest module's in- and outputs.

    Without gradients a layer's tensors are freed by the next layer; twice leaves room for the
    residual stream and for temporary tensors inside a layer.
    """
    largest = 1

    def measure(_module: object, inputs: object, output: object) -> None:
        nonlocal largest
        largest = max(largest, _bytes(inputs) + _bytes(output))

    hook = register_module_forward_hook(measure)
    try:
        model(x_1CHW)
    finally:
        hook.remove()
    return 2 * largest


def _bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


def states(
    run: Run, siblings: Sequence[Mix], parents: Mapping[str, Cell]
) -> Iterable[dict[str, torch.Tensor]]:
    """State dicts on the device of mixes that have the same parents."""
    first, *more = siblings[0]
    cell = parents[first]
    if more:
        return merge.states(siblings, parents, run.device)
    if cell.artifact.kind == "weights" and run.recipe.model.head.fit:
        return [run.network(cell).state_dict()]  # with the head that it lacks
    return [{k: v.to(run.device) for k, v in cell.state().items()}]


def _load(
    backbone: Backbone, run: Run, mixes: Sequence[Mix], parents: Mapping[str, Cell]
) -> list[Model]:
    """Models of the mixes: all run through `backbone`, and its graph where it is compiled."""
    head = models.head_names_of(run.recipe.model)
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
    return logits(features(x_BCHW if prompt_CHW is None else x_BCHW + prompt_CHW), weight, bias)
