"""A set's classes as groups of a model's outputs; a class mask is the case of one output a class.

ObjectNet's objects can be several ImageNet classes at once. The logit of such a class is the
largest of its members', and it takes the place of its first member, so that labels, masks and
predictions go on counting the head's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from loaders.benchmarks.objectnet import JOIN


def members(classes: Sequence[str], position: Mapping[str, int]) -> torch.Tensor | None:
    """Outputs of each class, int64 [G, M], short rows filled by their first; None if each is one.

    `position`: the place of a name among the head's outputs. Raises ValueError for two classes
    that share an output: an image's answer could not be given to one of them.
    """
    owner: dict[str, str] = {}
    for one in classes:
        for name in names(one, position):
            if (other := owner.setdefault(name, one)) != one:
                raise ValueError(f"classes {other} and {one} share the output {name}")
    rows = [[position[name] for name in names(one, position)] for one in classes]
    width = max(map(len, rows))
    if width == 1:
        return None
    return torch.tensor([row + row[:1] * (width - len(row)) for row in rows])


def names(one: str, position: Mapping[str, int]) -> list[str]:
    """The names of the outputs that a class stands for."""
    return [one] if one in position else one.split(JOIN)


def grouped(logits_BC: torch.Tensor, members_GM: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, C] with each class's largest at the place of its first output; differentiable.

    Outputs that are no class's first keep their value and are for the class mask to leave out.
    """
    if members_GM is None:
        return logits_BC
    largest_BG = logits_BC[:, members_GM].amax(dim=2)
    return logits_BC.index_copy(1, members_GM[:, 0], largest_BG)


def summed(logits_BC: torch.Tensor, members_GM: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, C] that give each class the probability of all its outputs together.

    As `grouped`, but smooth: a solver that needs gradients to vanish cannot end at a tie of two
    outputs, where a maximum has a kink.
    """
    if members_GM is None:
        return logits_BC
    filled_GM = members_GM == members_GM[:, :1]
    filled_GM[:, 0] = False
    each_BGM = logits_BC[:, members_GM].masked_fill(filled_GM, -torch.inf)
    return logits_BC.index_copy(1, members_GM[:, 0], each_BGM.logsumexp(dim=2))
