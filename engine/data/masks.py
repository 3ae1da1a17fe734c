"""A dataset's classes as outputs of a model's head, or as groups of them.

An ObjectNet object, or a class that a file describes, can correspond to several outputs. Its logit
is their largest, or that of the sum or mean of their probabilities, and takes the position of the
first, so labels, masks and predictions still index the head's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from engine.data import imagenet
from engine.did_you_mean import closest
from engine.machine.files import read_csv_rows
from loaders.pack import JOIN, Pack


def read_outputs(file: Path, head: Sequence[str]) -> dict[str, list[str]]:
    """The outputs of each class, from the lines `class,output` of a CSV file.

    head: the names of the model's outputs. Raises ValueError, naming file and line, for an output
    that the head lacks and a line of another form.
    """
    outputs: dict[str, list[str]] = {}
    known = set(head)
    for line, row in read_csv_rows(file, "class,output", "dataset.class_map"):
        if len(row) != 2 or row[1] not in known:
            close = closest(row[-1], head) if row else ""
            raise ValueError(
                f"{file}, line {line}: write a class and an output of the model's head"
                + (f"; did you mean {close!r}?" if close else "")
            )
        outputs.setdefault(row[0], []).append(row[1])
    return outputs


def members(
    outputs: Mapping[str, Sequence[str]], position: Mapping[str, int]
) -> torch.Tensor | None:
    """Outputs of each class, int64 [G, M], padded with the class's first; None if M would be 1.

    outputs: their names by class. position: the place of a name among the head's outputs. Raises
    ValueError for two classes that share an output, which would make predictions ambiguous.
    """
    owner: dict[str, str] = {}
    for label, of_label in outputs.items():
        for name in of_label:
            if (first := owner.setdefault(name, label)) != label:
                raise ValueError(f"classes {first} and {label} share the output {name}")
    rows = [[position[name] for name in of_label] for of_label in outputs.values()]
    width = max(map(len, rows))
    if width == 1:
        return None
    return torch.tensor([row + row[:1] * (width - len(row)) for row in rows])


def names(label: str, position: Mapping[str, int]) -> list[str]:
    """The names of a class's outputs: its own or, if the head knows none of that name, those that
    it joins by `JOIN`."""
    parts = label.split(JOIN)
    return parts if label not in position and all(part in position for part in parts) else [label]


def grouped(
    logits_BC: torch.Tensor, members_GM: torch.Tensor | None, reduction: str = "max"
) -> torch.Tensor:
    """Logits [B, C] with each class's at the position of its first output; differentiable.

    reduction: the largest of its outputs (`max`), or that of their probabilities' `sum` or `mean`.
    The other outputs keep their values; the class mask excludes them.
    """
    if members_GM is None:
        return logits_BC
    if reduction == "sum":
        return summed(logits_BC, members_GM)
    if reduction == "mean":
        count_G = 1 + (members_GM != members_GM[:, :1]).sum(dim=1)
        less_C = logits_BC.new_zeros(logits_BC.shape[1])
        less_C[members_GM[:, 0]] = count_G.to(logits_BC).log()
        return summed(logits_BC, members_GM) - less_C
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


def outputs_of(pack: Pack, head: Sequence[str], file: str = "") -> dict[str, list[str]]:
    """The names of the head's outputs that each class of a pack joins.

    file: that names them (`read_outputs`); empty: the classes are outputs themselves.
    Raises ValueError, naming the file, for a class that it lacks.
    """
    if file:
        outputs = read_outputs(Path(file), head)
        if missing := [name for name in pack.classes if name not in outputs]:
            raise ValueError(
                f"{file} has no outputs of {len(missing)} classes, such as {missing[0]!r}: add "
                f"lines `{missing[0]},OUTPUT`"
            )
        return {name: outputs[name] for name in pack.classes}
    position = {name: i for i, name in enumerate(head)}
    named = zip(pack.classes, names_in_head(pack.classes, head), strict=True)
    return {label: names(name, position) for label, name in named}


def to_head(
    pack: Pack, outputs: Mapping[str, Sequence[str]], head: Sequence[str], mask_rule: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels as outputs of the head, and the mask of possible predictions (None: all).

    outputs: the names of each class's outputs, in the order of labels. mask_rule: `present` allows
    the dataset's classes, `none` all classes of the head. Of a class with several outputs, the mask
    allows the first. Raises ValueError, naming the classes that the head lacks.
    """
    position = {name: i for i, name in enumerate(head)}
    unknown = [name for names in outputs.values() for name in names if name not in position]
    if unknown:
        more = ", ..." if len(unknown) > 3 else ""
        close = ", ".join(f"{name!r}{_nearest_class(name, head)}" for name in unknown[:3])
        count = f"{len(unknown)} class{'es' * (len(unknown) > 1)}"
        raise ValueError(
            f"{pack.name} has {count} that the model's head lacks: {close}{more}; "
            f"its folders must have the names of the head's {len(head)} classes"
        )
    first = torch.tensor([position[names[0]] for names in outputs.values()], dtype=torch.int64)
    labels = first[torch.from_numpy(np.array(pack.labels))]
    mask = torch.full((len(head),), mask_rule == "none")
    mask[[position[name] for names in outputs.values() for name in names]] = False
    mask[first] = True
    return labels, None if mask.all() else mask


def names_in_head(classes: Sequence[str], head: Sequence[str]) -> Sequence[str]:
    """A dataset's classes under the head's names.

    Folders of an ImageNet-1K dataset may be named after the outputs' numbers, from 0.
    """
    if tuple(head) != imagenet.wnids() or not all(name.isdecimal() for name in classes):
        return classes
    numbers = [int(name) for name in classes]
    fit = max(numbers) < len(head) and len(set(numbers)) == len(numbers)
    return [head[number] for number in numbers] if fit else classes


def _nearest_class(name: str, head: Sequence[str]) -> str:
    """A question about the nearest class of the head; empty if none is close."""
    known = {label: label for label in head}
    if tuple(head) == imagenet.wnids():
        for wnid, words in imagenet.synonyms().items():
            known |= {word: f"{wnid} ({word})" for word in words.split(", ")}
    close = closest(name.replace("_", " "), known)
    return f" (is it {known[close]}?)" if close else ""
