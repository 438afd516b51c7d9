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
    """Random changes of the training images; see `data.batches`."""

    crop: Annotated[int, pydantic.Field(ge=0)] = 4
    """Pixels of padding (mirrored) of which a random crop is taken."""
    flip: bool | Literal["alternating"] = True
    """Whether to mirror at random; `alternating` mirrors each image in every
    second epoch."""
    cutout: Annotated[int, pydantic.Field(ge=0)] = 0
    """Side of a gray square at a random place, in pixels; 0 for none."""


class Training(Settings):
    """How a stage fits its model; see `training.fit` and `build_optimizer`."""

    epochs: Count = 10
    """Passes over the training images."""
    batch_size: Count = 128
    """Images of a step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """`sgd` is with Nesterov momentum and decoupled weight decay."""
    learning_rate: Positive = 0.1
    """The largest of the schedule."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """How the learning rate moves over the steps."""
    warmup: Share = 0.2
    """Share of the steps in which the learning rate rises."""
    momentum: Share = 0.9
    """Of `sgd`."""
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """Decoupled: a step multiplies kernels by 1 - learning rate x weight decay."""
    label_smoothing: Share = 0.0
    """Share of the label that is spread over all classes."""
    ema: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential average of the weights, which is what is kept."""
    select: Literal["last", "best"] = "last"
    """The epoch whose weights are kept: the last, or the best on validation."""
    patience: Count | None = None
    """Epochs without improvement on validation after which training stops."""
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """What the model computes in; `auto` chooses by processor and widths."""
    augment: Augment | None = None
    """Random changes of the images; none by default."""
    images: Literal["train", "train+validation"] = "train"
    """Whether validation images are trained on as well."""
    bn_l1: Positive | None = None
    """Network Slimming: weight of the L1 norm of the scales of batch normalization."""

    omit_if_default = ("bn_l1",)
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

    `architecture_of` names a stage whose model's layers are taken with new weights:
    what a pruned shape is worth when it is trained from scratch.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    """A factory, such as `resnet8`; its arguments stand beside it."""
    file: str | None = None
    """Path of a saved model, which is trained further."""
    architecture_of: Name | None = None
    """A stage whose layers are taken with new weights."""

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
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """What the factory takes beside its name."""
        return dict(self.model_extra or {})


class Importance(Settings):
    """A criterion that ranks channels, and how the layers' scores become one."""

    name: str
    """A registered importance, such as `l1` or `taylor`."""
    reduction: Literal["mean", "max", "sum"] | None = None
    """How the scores of the layers of a group become one."""
    normalize: Literal["mean", "max", "none"] | None = None
    """What the scores of each layer are divided by."""

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
    """A registered loss, such as `kl`, `dkd` or `hint`."""
    weight: Positive = 1.0
    """Factor of the loss."""
    teacher_layers: tuple[str, ...] | None = None
    """Layers of the teacher whose feature maps are compared."""
    student_layers: tuple[str, ...] | None = None
    """Layers of the student that they are compared with."""


def names(value: str | Iterable[str] | None) -> list[str]:
    """A list of the names that a key holds: none, one or several."""
    return [value] if isinstance(value, str) else list(value or ())
