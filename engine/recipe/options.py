"""The options of the engine's methods, by module, beside what every method has.

They stand here and not beside the methods so that a recipe is read without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from engine.errors import RecipeError
from engine.recipe.schema import (
    BelowOne,
    Count,
    MethodRecipe,
    NotNegative,
    Number,
    Part,
    Positive,
    Recipe,
    Unit,
)

NO_HOLDOUT = "a greedy soup is chosen on a downstream hold-out; set dataset.holdout above 0"


@dataclass(frozen=True)
class Ensemble(MethodRecipe):
    trains = False
    has_weights = False
    members: list[str] = field(default_factory=lambda: ["fine_tune", "ewc", "lwf"])

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.members if name != "pre"]

    def check(self, cell: Recipe) -> None:
        if len(self.members) < 2 or len(set(self.members)) < len(self.members):
            raise RecipeError(
                f"method.members={self.members}: name two methods or more, or `pre`, none twice"
            )


@dataclass(frozen=True)
class DaWin(Ensemble):
    members: list[str] = field(default_factory=lambda: ["pre", "fine_tune"])


@dataclass(frozen=True)
class EWC(MethodRecipe):
    lam: NotNegative = 1.0
    fisher_images: Count = 0  # of the upstream set's training split, or all: 0, or more than it has
    # model: sampled from its prediction; data: the empirical Fisher
    fisher_labels: Literal["model", "data"] = "model"
    # mean: divide by its mean, so that lambda has one unit
    fisher_scale: Literal["none", "mean"] = "none"


@dataclass(frozen=True)
class OfCLIP(MethodRecipe):
    """A method that needs CLIP's text tower."""

    def check(self, cell: Recipe) -> None:
        if cell.model.weights.source != "open_clip":
            raise RecipeError(
                f"{self.title} needs CLIP's text tower, and the model {cell.model.name} has none: "
                "take a model with a zero-shot head, such as vit_b16_clip_openai_zero_shot"
            )


@dataclass(frozen=True)
class FLYP(OfCLIP):
    def check(self, cell: Recipe) -> None:
        super().check(cell)
        if cell.train.accumulation > 1:
            raise RecipeError(
                f"train.accumulation={cell.train.accumulation}: {self.title} contrasts all images "
                "of a batch with one another, so it must not be cut; set train.accumulation=1"
            )


@dataclass(frozen=True)
class CaRot(FLYP):
    weight: NotNegative = 1.5  # of the cross-entropy to the teacher
    average: Literal["ema", "beta"] = "ema"  # CaRot's, or TRACER's
    orthogonality: NotNegative = 0.2


@dataclass(frozen=True)
class FTP(MethodRecipe):
    annealing: Unit = 1.0  # of gradients that shrink a radius; 0: a radius only grows


@dataclass(frozen=True)
class L2SP(MethodRecipe):
    alpha: NotNegative = 0.1
    head: Literal["shared", "new"] = "shared"  # shared: as all; new: pulled to zero, by beta
    beta: NotNegative = 0.01


@dataclass(frozen=True)
class LinearProbe(MethodRecipe):
    l2: Positive = 1e-3  # canonical: weight of the pull, as `engine.methods.heads` defines it
    anchor: Literal["base", "zero"] = "base"  # canonical: what l2 pulls towards


@dataclass(frozen=True)
class LiNeS(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    alpha: Unit = 0.5  # the scale of the first block
    beta: Unit = 0.5  # what the scale of the last block has in addition


@dataclass(frozen=True)
class LipsumFT(OfCLIP):
    weight: NotNegative = 1.0
    texts: Number = 80  # of a step
    tokens: Annotated[int, Meta(ge=1, le=70)] = 8  # of a text, beside its beginning and end


@dataclass(frozen=True)
class LoRA(MethodRecipe):
    rank: Number = 8
    scale: float = 1 / 8  # of the update, whatever the rank: alpha / rank where alpha is meant
    train_head: bool = True  # canonical: the head learns beside the factors


@dataclass(frozen=True)
class LPFT(MethodRecipe):
    needs = ("linear_probe",)


@dataclass(frozen=True)
class LwF(MethodRecipe):
    weight: NotNegative = 1.0
    temperature: Positive = 2.0


@dataclass(frozen=True)
class ModelStock(MethodRecipe):
    trains = False
    members: list[str] = field(default_factory=lambda: ["fine_tune"])
    seeds: Number = 2  # of each member: the recipe's seed, seed + 1000, seed + 2000, ...

    @property
    def needs(self) -> Sequence[str]:
        return self.members

    def check(self, cell: Recipe) -> None:
        if len(set(self.members)) * self.seeds < 2:
            raise RecipeError(
                f"method.members={self.members} with method.seeds={self.seeds}: Model Stock needs "
                "two models or more; raise method.seeds or name more members"
            )
        if len(set(self.members)) < len(self.members):
            raise RecipeError(f"method.members={self.members} names a member twice")


@dataclass(frozen=True)
class MonoSoup(MethodRecipe):
    needs = ("fine_tune",)
    trains = False


@dataclass(frozen=True)
class SelfDistillation(MethodRecipe):
    weight: NotNegative = 1.5  # of the divergence from the teacher
    average: Literal["ema", "beta"] = "ema"  # CaRot's, or TRACER's


@dataclass(frozen=True)
class Soup(MethodRecipe):
    trains = False
    has_weights = False
    select: Literal["uniform", "greedy"] = "uniform"
    members: list[str] = field(default_factory=lambda: ["pre", "fine_tune", "ewc", "lwf"])

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.members if name != "pre"]

    def check(self, cell: Recipe) -> None:
        if not self.members:
            raise RecipeError("method.members is empty; name at least one method or `pre`")
        if self.select == "greedy" and not cell.dataset.holdout:
            raise RecipeError(NO_HOLDOUT)


@dataclass(frozen=True)
class SPD(MethodRecipe):
    lam: NotNegative = 1.0  # 1: exactly back to the distance before the step


@dataclass(frozen=True)
class StrongFineTune(MethodRecipe):
    layer_decay: Part = 1.0  # what the rate of a layer is of that of the next; 1: all alike
    ema: BelowOne = 0.0  # decay of a moving average of the weights; 0: the last weights
    label_smoothing: BelowOne = 0.0
    mixup: NotNegative = 0.0  # alpha of the Beta distribution of shares; 0: no mixing
    hflip: Unit = 0.0  # how probably an image is mirrored


@dataclass(frozen=True)
class TIES(MethodRecipe):
    trains = False
    members: list[str] = field(default_factory=lambda: ["fine_tune", "ewc", "lwf"])
    density: Part = 0.2  # share of each task vector's numbers, over all parameters together
    elect: bool = True  # False: the trimmed vectors are added
    scale: NotNegative = 1.0

    @property
    def needs(self) -> Sequence[str]:
        return self.members

    def check(self, cell: Recipe) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise RecipeError(
                f"method.members={self.members}: name at least one method, and none twice"
            )


@dataclass(frozen=True)
class VisualPrompt(MethodRecipe):
    # Pixels; scaled with the image size.
    frame_at_224: Annotated[int, Meta(ge=1, le=111)] = 30

    def check(self, cell: Recipe) -> None:
        size = cell.model.image_size
        if not 0 < 2 * self.width(size) < size:
            raise RecipeError(
                f"method.frame_at_224={self.frame_at_224}: a frame of {self.width(size)} px does "
                f"not fit an image of {size} px"
            )

    def width(self, image_size: int) -> int:
        """Of the frame, in pixels."""
        return round(self.frame_at_224 * image_size / 224)


@dataclass(frozen=True)
class VRF(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    middle: float = 1.5  # the squared distance at which both models count alike
    width: Positive = 0.6


@dataclass(frozen=True)
class WiSEFT(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    alpha: Unit = 0.5  # the table's row, evaluated whether or not `alphas` holds it
    alphas: list[Unit] = field(default_factory=lambda: [i / 10 for i in range(11)])


OPTIONS: dict[str, type[MethodRecipe]] = {  # by module of `engine.methods`
    "carot": CaRot,
    "dawin": DaWin,
    "dora": LoRA,
    "ensemble": Ensemble,
    "ewc": EWC,
    "fine_tune": MethodRecipe,
    "flyp": FLYP,
    "ftp": FTP,
    "l2sp": L2SP,
    "linear_probe": LinearProbe,
    "lines": LiNeS,
    "lipsum_ft": LipsumFT,
    "lora": LoRA,
    "lp_ft": LPFT,
    "lwf": LwF,
    "model_stock": ModelStock,
    "mono_soup": MonoSoup,
    "self_distillation": SelfDistillation,
    "soup": Soup,
    "spd": SPD,
    "strong_fine_tune": StrongFineTune,
    "ties": TIES,
    "visual_prompt": VisualPrompt,
    "vrf": VRF,
    "wise_ft": WiSEFT,
}
