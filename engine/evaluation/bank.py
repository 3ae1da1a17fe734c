"""A bank of models that see the same images: which fit on the device together, and what moves then.

Weights stay on the device as far as they fit. Of a larger bank either the images are read once a
group of models, or the groups are loaded again for every slice of the set; whichever is estimated
to be faster. How many images go through a model at once depends on the memory, not on the bank, so
that a model says the same in any company. A matrix product of fewer rows may round otherwise, so
the last bits of a probability can differ between machines where one cuts batches and another does
not; artefacts are not told apart by that. Batches are halved, so that few sizes are possible.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.modules.module import register_module_forward_hook

from engine import models
from engine.evaluation import merge
from engine.machine import ranks
from engine.models.folding import Folded
from engine.models.form import Form
from engine.models.fp32_head import logits
from engine.run import Run
from engine.store import tensors
from engine.store.cells import Cell, Mix
from loaders.resident import free_memory

log = logging.getLogger(__name__)
Model = Callable[[torch.Tensor], torch.Tensor]
Group = Sequence[Mix]
# Of the free memory; activations come first. The rest is for images and what cannot be foreseen.
WEIGHTS_SHARE, ACTIVATIONS_SHARE = 0.5, 0.25


class Forward:
    """Sends batches through models, in parts that the memory free at its making holds.

    A part is a half, a quarter, ... of a batch: outputs may differ in their last bits from those of
    the batch in one piece, and are the same wherever the parts are.
    """

    def __init__(self, run: Run) -> None:
        self.device = run.device
        self.normalize = models.Normalize(run.recipe.model, run.device)
        self.size = run.recipe.evaluate.batch_size
        self._room = ACTIVATIONS_SHARE * free_memory(run.device)
        self._part = 0

    def __call__(self, model: Model, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Outputs [B, ...] (float32) of normalised images."""
        if not self._part:
            self._part = self._choose(model, x_BCHW[:1])
        parts = x_BCHW.tensor_split(-(-len(x_BCHW) // self._part))
        outputs = [model(part).float() for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _choose(self, model: Model, x_1CHW: torch.Tensor) -> int:
        each = activation_bytes(model, x_1CHW)
        part = self.size
        while part > max(1, self._room // each):
            part = -(-part // 2)
        if part < self.size:
            log.info(
                "batches of %d run in parts of at most %d: one image takes about %.0f MB",
                self.size,
                part,
                each / 1e6,
            )
        return part


class Bank:
    """The models of some mixes, in groups that fit on the device together, one group at a time."""

    def __init__(
        self, run: Run, mixes: Group, parents: Mapping[str, Cell], slice_bytes: int
    ) -> None:
        """`slice_bytes`: of a slice's images, which stay while several groups are shown them."""
        self.run = run
        self.parents = parents
        members = {name for mix in mixes for name in mix}
        files = [parents[name].artifact.file(tensors.WEIGHTS) for name in members]
        largest = max(file.stat().st_size for file in files)
        # Mixed parents take their place twice, as files and as the rows that are averaged, and
        # one more model lends its form.
        aside = 2 * max(map(len, mixes)) + 1
        free = free_memory(run.device)

        def fitting(free: float) -> list[Group]:
            room = WEIGHTS_SHARE * free / largest - aside
            return groups(mixes, max(1, int(ranks.least(room))))

        self.groups = fitting(free)
        if len(self.groups) > 1:
            self.groups = fitting(free - slice_bytes)
        self._group: Group = ()
        self._models: list[Model] = []
        self._load_s = 0.0

    @functools.cached_property
    def _backbone(self) -> Folded:
        recipe, device = self.run.recipe, self.run.device
        form = Form.of_evaluation(recipe, device)
        return form.backbone(recipe.model, len(self.run.sets.classes), device)

    def models(self, group: Group) -> list[Model]:
        """The group's models on the device; those of the group before are gone."""
        if group is not self._group:
            self._group, self._models = (), []
            backbone, start = self._backbone, time.perf_counter()
            self._models = _load(backbone, self.run, group, self.parents)
            self._load_s = (time.perf_counter() - start) / len(group)
            self._group = group
        return self._models

    def passes(self, slices: int, read_s: Callable[[], float]) -> list[Sequence[Group]]:
        """Groups that share a pass over the set: each has its own, or all are loaded every slice.

        read_s: estimates the seconds that reading the whole set takes, and is asked where it
        counts. What a load takes is measured on the first group. Ranks agree on the answer.
        """
        if len(self.groups) == 1:
            return [self.groups]
        self.models(self.groups[0])
        count = sum(map(len, self.groups))
        read_again_s = (len(self.groups) - 1) * read_s()
        load_again_s = (slices - 1) * count * self._load_s
        rereads = ranks.all_agree(read_again_s < load_again_s)
        log.info(
            "%d models do not fit together, so there are %d groups. Reading the set again would "
            "take %.1f s, loading models again %.1f s: %s",
            count,
            len(self.groups),
            read_again_s,
            load_again_s,
            "the set is read once a group" if rereads else "every slice is shown to all groups",
        )
        return [[group] for group in self.groups] if rereads else [self.groups]


def groups(mixes: Sequence[Mix], room: int) -> list[Group]:
    """The mixes in groups of at most `room`; those of the same parents stand together."""
    together = sorted(mixes, key=lambda mix: (len(mix), tuple(mix)))
    return [together[i : i + room] for i in range(0, len(together), room)]


def activation_bytes(model: Model, x_1CHW: torch.Tensor) -> int:
    """An estimate of the memory that one image takes: twice the largest module's in- and outputs.

    Without gradients a layer's tensors die with the next layer; twice leaves room for the residual
    stream and for what a layer keeps to itself.
    """
    largest = 1

    def see(_module: object, inputs: object, output: object) -> None:
        nonlocal largest
        largest = max(largest, _bytes(inputs) + _bytes(output))

    hook = register_module_forward_hook(see)
    try:
        model(x_1CHW)
    finally:
        hook.remove()
    return 2 * largest


def _bytes(found: object) -> int:
    if isinstance(found, torch.Tensor):
        return found.numel() * found.element_size()
    return sum(map(_bytes, found)) if isinstance(found, tuple | list) else 0


def _load(backbone: Folded, run: Run, mixes: Group, parents: Mapping[str, Cell]) -> list[Model]:
    """Models of the mixes: `backbone` lends its form to all, and its graph where it is compiled."""
    head = models.head_names_of(run.recipe.model)
    by_members: dict[tuple[str, ...], list[Mix]] = {}
    for mix in mixes:
        by_members.setdefault(tuple(mix), []).append(mix)
    loaded: dict[int, Model] = {}
    for members, some in by_members.items():
        cell = parents[members[0]]
        if len(members) > 1:
            states = merge.states(some, parents, run.device)
        elif cell.artifact.kind == "weights" and run.recipe.model.head.fit:
            states = [run.network(cell).state_dict()]  # with the head that it lacks
        else:
            states = [{k: v.to(run.device) for k, v in cell.state().items()}]
        for mix, state in zip(some, states, strict=True):
            weight, bias = (state.pop(name) for name in head)
            features = functools.partial(backbone.given, backbone.state(state))
            prompt = cell.prompt() if len(members) == 1 else None
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
