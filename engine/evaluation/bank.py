"""A bank of models that see the same images: which fit on the device, and what is loaded again.

Weights stay on the device as far as they fit. For a larger bank either the images are read once a
group of models, or the groups are loaded again for every slice of the set; whichever is estimated
to be faster. How many images go through a model at once depends on the memory and not on the bank,
so a model's predictions do not depend on the models beside it. A matrix product of fewer rows may
round otherwise, so the last bits of a probability can differ between machines of which only one
cuts batches; the keys of artefacts do not say so. Batches are halved, so few sizes are possible.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
# Of the free memory; the rest is for images and for what cannot be foreseen.
WEIGHTS_SHARE, ACTIVATIONS_SHARE = 0.5, 0.25
KEPT_SHARE = 0.1  # of models between two sets: more could keep the next set out of the memory


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


@dataclass
class Loaded:
    """The group of a run's models that is on the device, where the next set may find it.

    bytes: about what it takes. load_s: seconds that a model of it took to load.
    """

    backbone: Folded | None = None
    group: Group = ()
    models: list[Model] = field(default_factory=list)
    bytes: float = 0
    load_s: float = 0

    def free(self) -> None:
        self.group, self.models, self.bytes = (), [], 0


class ModelBank:
    """The models of mixes, in groups that fit on the device; one group at a time is there."""

    def __init__(
        self,
        run: Run,
        mixes: Group,
        parents: Mapping[str, Cell],
        slice_bytes: int,
        loaded: Loaded | None = None,
    ) -> None:
        """slice_bytes: of a slice's images, which stay while several groups see them. loaded: by an
        earlier bank of the run."""
        self.run = run
        self.parents = parents
        self._loaded = loaded or Loaded()
        members = {name for mix in mixes for name in mix}
        files = [parents[name].artifact.file(tensors.WEIGHTS) for name in members]
        self._largest = max(file.stat().st_size for file in files)
        # Mixed parents are in memory twice, as files and as the rows that are averaged, and the
        # backbone takes the memory of one more model.
        extra = 2 * max(map(len, mixes)) + 1
        free = free_memory(run.device) + self._loaded.bytes
        for available in (free, free - slice_bytes):
            models = WEIGHTS_SHARE * available / self._largest - extra
            self.groups = groups(mixes, max(1, int(ranks.least(models))))
            if len(self.groups) == 1:
                break

    def models(self, group: Group) -> list[Model]:
        """The group's models, loaded to the device; the group before is freed."""
        loaded = self._loaded
        if not all(mix in loaded.group for mix in group):
            loaded.free()
            loaded.backbone = loaded.backbone or self._backbone()
            start = time.perf_counter()
            loaded.models = _load(loaded.backbone, self.run, group, self.parents)
            loaded.load_s = (time.perf_counter() - start) / len(group)
            loaded.group, loaded.bytes = group, len(group) * self._largest
        return [loaded.models[loaded.group.index(mix)] for mix in group]

    def leave(self) -> None:
        """Free the models unless they are small: the next set takes its memory before models."""
        loaded = self._loaded
        if loaded.bytes > KEPT_SHARE * (free_memory(self.run.device) + loaded.bytes):
            loaded.free()

    def _backbone(self) -> Folded:
        recipe, device = self.run.recipe, self.run.device
        form = Form.of_evaluation(recipe, device)
        return form.backbone(recipe.model, len(self.run.sets.classes), device)

    def passes(self, slices: int, read_s: Callable[[], float]) -> list[Sequence[Group]]:
        """Groups that share a pass over the set: each has a pass, or one pass reloads them all.

        read_s: estimates the seconds that reading the whole set takes; called only for several
        groups. The time of a load is measured on the first group. Ranks agree on the answer.
        """
        if len(self.groups) == 1:
            return [self.groups]
        self.models(self.groups[0])
        count = sum(map(len, self.groups))
        read_again_s = (len(self.groups) - 1) * read_s()
        load_again_s = (slices - 1) * count * self._loaded.load_s
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


def groups(mixes: Sequence[Mix], size: int) -> list[Group]:
    """The mixes in groups of at most `size`; mixes of the same parents stand together."""
    by_parents = sorted(mixes, key=lambda mix: (len(mix), tuple(mix)))
    return [by_parents[i : i + size] for i in range(0, len(by_parents), size)]


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
    run: Run, siblings: Group, parents: Mapping[str, Cell]
) -> Iterable[dict[str, torch.Tensor]]:
    """State dicts on the device of mixes that have the same parents."""
    first, *more = siblings[0]
    cell = parents[first]
    if more:
        return merge.states(siblings, parents, run.device)
    if cell.artifact.kind == "weights" and run.recipe.model.head.fit:
        return [run.network(cell).state_dict()]  # with the head that it lacks
    return [{k: v.to(run.device) for k, v in cell.state().items()}]


def _load(backbone: Folded, run: Run, mixes: Group, parents: Mapping[str, Cell]) -> list[Model]:
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
