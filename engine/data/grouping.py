"""A dataset's classes as groups of a model's outputs.

An ObjectNet object can correspond to several ImageNet classes. The logit of such a class is the
largest of its outputs and takes the position of the first, so labels, masks and predictions still
index the head's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from loaders.benchmarks.objectnet import JOIN


def members(classes: Sequence[str], position: Mapping[str, int]) -> torch.Tensor | None:
    """Outputs of each class, int64 [G, M], padded with the class's first; None if M would be 1.

    position: the place of a name among the head's outputs. Raises ValueError for two classes that
    share an output, which would make predictions ambiguous.
    """
    owner: dict[str, str] = {}
    for label in classes:
        for name in names(label, position):
            if (first := owner.setdefault(name, label)) != label:
                raise ValueError(f"classes {first} and {label} share the output {name}")
    rows = [[position[name] for name in names(label, position)] for label in classes]
    width = max(map(len, rows))
    if width == 1:
        return None
    return torch.tensor([row + row[:1] * (width - len(row)) for row in rows])


def names(label: str, position: Mapping[str, int]) -> list[str]:
    """The names of a class's outputs."""
    return [label] if label in position else label.split(JOIN)


def grouped(logits_BC: torch.Tensor, members_GM: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, C] with each class's largest at the position of its first output; differentiable.

    The other outputs keep their values; the class mask excludes them.
    """
    if members_GM is None:
        return logits_BC
    largest_BG = logits_BC[:, members_GM].amax(dim=2)
    return logits_BC.index_copy(1, members_GM[:, 0], largest_BG)


def summed(logits_BC: torch.Tensor, members_GM: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, C] that give each class the sum of its outputs' probabilities.

    This is the smooth form of `grouped`: the maximum is not differentiable if two outputs are
    equal, where a solver that waits for vanishing gradients would never stop.
    """
    if members_GM is None:
        return logits_BC
    padding_GM = members_GM == members_GM[:, :1]
    padding_GM[:, 0] = False
    logits_BGM = logits_BC[:, members_GM].masked_fill(padding_GM, -torch.inf)
    return logits_BC.index_copy(1, members_GM[:, 0], logits_BGM.logsumexp(dim=2))
