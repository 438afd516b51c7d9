"""Settings that kinds of stages share: models, training, augmentation, losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic

Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Ratio = Annotated[float, pydantic.Field(gt=0.0, lt=1.0)]
Weight = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Positive = Annotated[float, pydantic.Field(gt=0.0)]
Count = Annotated[int, pydantic.Field(ge=1, strict=True)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**31, strict=True)]
# Points (share of training, value), between which a value moves in straight lines.
Place = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Name = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]
# One name may be written without its brackets.
Names = Annotated[
    tuple[Name, ...],
    pydantic.BeforeValidator(lambda v: (v,) if isinstance(v, str) else v),
    pydantic.Field(min_length=1),
]


def _check_order(bounds: Any) -> Any:
    if isinstance(bounds, tuple) and not bounds[0] < bounds[1]:
        raise ValueError(
            "expected [low, high], what black and white are to the model, got "
            f"{list(bounds)}"
        )
    return bounds


# What a model takes for the bytes of an image; see `kdprune.intake.parse_range`.
InputRange = Annotated[
    tuple[float, float]
    | Literal["imagenet", "caffe"]
    | dict[Literal["mean", "std"], tuple[float, ...]],
    pydantic.AfterValidator(_check_order),
]
# What a serializer is told to write keys by the names they first had.
_FIRST_NAMES = {"first_names": True}


class Settings(pydantic.BaseModel):
    """Checked, read-only settings; unknown keys are refused.

    Attributes:
        omit_if_default: Keys that were added after the first release. They are not
            written at their default, so that what was made before them stays done.
        renamed: Former keys with the present ones. A recipe may use either; the
            fingerprint of a stage is of the former, for the same reason.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    omit_if_default: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    @pydantic.model_serializer(mode="wrap")
    def _serialize(
        self,
        serialize: pydantic.SerializerFunctionWrapHandler,
        info: pydantic.SerializationInfo,
    ) -> dict[str, Any]:
        found = serialize(self)
        for name in self.omit_if_default:
            if getattr(self, name) == type(self).model_fields[name].default:
                found.pop(name, None)
        if info.context == _FIRST_NAMES:
            for former, present in self.renamed.items():
                if present in found:
                    found[former] = found.pop(present)
        return found

    def hashed(self, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """What a fingerprint is made of: JSON-able, by the names keys first had."""
        return self.model_dump(
            mode="json", by_alias=True, exclude=set(exclude), context=_FIRST_NAMES
        )


class Augment(Settings):
    """Random changes of the training images."""

    crop: Annotated[int, pydantic.Field(ge=0)] = 4
    """Pad by this many pixels (by reflection) and crop a random window of the
    image's size."""
    flip: bool | Literal["alternating"] = True
    """Mirror half of the images at random; `alternating` mirrors each in every
    other epoch."""
    cutout: Annotated[int, pydantic.Field(ge=0)] = 0
    """Side in pixels of a square that is filled with gray; 0 for none."""


class Training(Settings):
    """How a stage trains its model."""

    epochs: Count = 10
    """Passes over the training images."""
    batch_size: Count = 128
    """Images in a step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd` has Nesterov momentum."""
    learning_rate: Positive = 0.1
    """The peak of the schedule, or the constant rate."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """`one_cycle` rises, then falls linearly to zero; `cosine` falls along a cosine."""
    warmup: Share = 0.2
    """Share of the steps in which the learning rate rises."""
    momentum: Share = 0.9
    """Momentum of `sgd`."""
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """Decoupled: each step multiplies kernels by 1 - learning rate × this.
    BatchNorm and biases are excluded."""
    label_smoothing: Share = 0.0
    """Share of the target that is spread evenly over all classes."""
    ema: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    """Momentum of an exponential moving average of the weights; – for none."""
    select: Literal["last", "best"] = "last"
    """Whose weights are kept: those of the last epoch, or of the best by validation
    accuracy."""
    patience: Count | None = None
    """Stop when that many epochs brought no better validation accuracy."""
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """`auto` is bfloat16 where the processor or GPU is faster with it, else float32."""
    augment: Augment | None = None
    """Random changes of the images; none without it."""
    images: Literal["train", "train+validation"] = "train"
    """`train+validation` trains on the validation images, too, and cannot choose an
    epoch."""
    bn_l1: Positive | None = None
    """Weight of an L1 penalty on the scales of batch normalization (network
    slimming), for `importance: bn_scale` later."""

    class_weight: Literal["balanced"] | None = None
    """`balanced` weights the labels' loss by class, so that each counts the same
    however few images it has."""

    omit_if_default = ("bn_l1", "class_weight")
    renamed = {"slimming": "bn_l1"}

    @pydantic.model_validator(mode="after")
    def _chooses_on_unseen(self) -> Training:
        if self.images != "train" and (self.select == "best" or self.patience):
            raise ValueError(
                "images: train+validation leaves none to choose an epoch by; expected "
                "select: last and no patience"
            )
        return self


class Model(Settings):
    """A factory's name and its arguments, a saved model's path, or a stage's layers.

    `architecture_of` is for training a pruned architecture from scratch.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    """A network: `resnet8`, `resnet`, …, or one that a plugin registered; its
    arguments stand beside it."""
    file: str | None = None
    """A saved model, `.keras` or `.h5` of Keras 3 or tf_keras."""
    architecture_of: Name | None = None
    """A stage whose model's layers are taken, with new weights."""
    input_range: InputRange | None = None
    """Of `file`: what it takes for black and white, as of a `load` stage."""

    omit_if_default = ("input_range",)
    renamed = {"like": "architecture_of"}

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Model:
        sources = ("name", "file", "architecture_of")
        given = [key for key in sources if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(
                "expected one of `name` (a factory), `file` (a saved model) and "
                "`architecture_of` (a stage whose layers get new weights), got "
                f"{', '.join(given) or 'none'}"
            )
        if self.name is None and self.model_extra:
            raise ValueError(
                f"expected no more than `{given[0]}`, got {self.model_extra}"
            )
        if self.input_range is not None and self.file is None:
            raise ValueError(
                f"`input_range` is of a saved model, `file`; got it with `{given[0]}`, "
                "whose models take [0, 1]"
            )
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """What the factory takes beside its name."""
        return dict(self.model_extra or {})


class Importance(Settings):
    """A criterion that ranks channels, and how the layers' scores become one."""

    name: str
    """`l1`, `l2`, `fpgm`, `bn_scale`, `taylor`, `gradient`, `activation_rate`,
    `activation_mean`, `random`, or one that a plugin registered."""
    reduction: Literal["mean", "max", "sum"] | None = None
    """How the scores of the layers of a group become one."""
    normalize: Literal["mean", "max", "none"] | None = None
    """What a layer's scores are divided by, so that layers can be compared."""

    @pydantic.model_validator(mode="after")
    def _has_scores(self) -> Importance:
        if self.name == "random" and (self.reduction or self.normalize):
            raise ValueError(
                "importance random scores no layers: expected neither `reduction` nor "
                "`normalize`"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What its function takes beside a group and statistics."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class SoftLoss(Settings):
    """A loss by which a student learns from its teacher, with its own arguments."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str
    """The [loss](distillation.md#losses), or one that a plugin registered."""
    weight: Positive = 1.0
    """Its weight in the sum of losses."""
    teacher_layers: tuple[str, ...] | None = None
    """Losses of features: the teacher's layers to compare; the last of each
    resolution if left out."""
    student_layers: tuple[str, ...] | None = None
    """The student's layers, one for each of the teacher's."""


def names(value: str | Iterable[str] | None) -> list[str]:
    """A list of the names that a key holds: none, one or several."""
    return [value] if isinstance(value, str) else list(value or ())
