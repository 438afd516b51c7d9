"""Settings that stages share: data, models, training, teaching."""

from typing import Annotated, ClassVar, Literal

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


class Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Settings that came later, not written at their default: what was made before
    # them stays done.
    later: ClassVar[tuple[str, ...]] = ()

    @pydantic.model_serializer(mode="wrap")
    def _without_later(self, serialize):
        found = serialize(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                found.pop(name, None)
        return found


class Data(Settings):
    """Which images, and how they are split."""

    dataset: Literal["cifar10", "folder", "shapes"]
    validation: Share = 0.1
    calibration: Count = 500
    seed: Seed = 0
    path: str | None = None
    image_size: tuple[Count, Count] | Count | None = None
    channels: Literal[1, 3] | None = None
    test: Share | None = None
    train_images: Count | None = None
    test_images: Count | None = None


class Augment(Settings):
    """Random changes of the training images; see `data.batches`."""

    crop: Annotated[int, pydantic.Field(ge=0)] = 4
    flip: bool | Literal["alternating"] = True
    cutout: Annotated[int, pydantic.Field(ge=0)] = 0


class Training(Settings):
    """How a stage fits its model; see `training.fit` and `build_optimizer`."""

    epochs: Count = 10
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Share = 0.2
    momentum: Share = 0.9
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    label_smoothing: Share = 0.0
    ema: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    select: Literal["last", "best"] = "last"
    patience: Count | None = None
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    augment: Augment | None = None
    images: Literal["train", "train+validation"] = "train"
    # Network Slimming: the weight of the L1 norm of batch normalization's factors.
    slimming: Positive | None = None

    later = ("slimming",)

    @pydantic.model_validator(mode="after")
    def _chooses_on_unseen(self):
        if self.images != "train" and (self.select == "best" or self.patience):
            raise ValueError(
                "images: train+validation leaves none to choose an epoch by; expected "
                "select: last and no patience"
            )
        return self


class Model(pydantic.BaseModel):
    """A factory's name and its arguments, a saved model's path, or a stage's layers.

    `like` names a stage whose model's layers are taken with new weights: what a
    pruned shape is worth when it is trained from the start.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    file: str | None = None
    like: Name | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self):
        given = [key for key in ("name", "file", "like") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(
                "expected one of `name` (a factory), `file` (a model) and `like` (a "
                f"stage whose layers get new weights), got {', '.join(given) or 'none'}"
            )
        if self.name is None and self.model_extra:
            raise ValueError(
                f"expected no more than `{given[0]}`, got {self.model_extra}"
            )
        return self

    def parents(self):
        return names(self.like)


class Importance(Settings):
    """By what channels are ranked, with how the layers' scores become one."""

    name: str
    reduction: Literal["mean", "max", "sum"] | None = None
    normalize: Literal["mean", "max", "none"] | None = None

    @pydantic.model_validator(mode="after")
    def _has_scores(self):
        if self.name == "random" and (self.reduction or self.normalize):
            raise ValueError(
                "random channels have no scores of layers: expected neither "
                "`reduction` nor `normalize`"
            )
        return self

    @property
    def options(self):
        """What its function takes beside a group and evidence."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class StageSettings(Settings):
    seed: Seed | None = None

    def parents(self):
        """Names of the stages this one starts from or learns from."""
        return []

    def files(self):
        """Paths of the model files that it starts from."""
        given = (getattr(self, "file", None), getattr(self, "model", None))
        paths = [getattr(item, "file", item) for item in given]
        return [path for path in paths if path]


def names(value):
    """A list of the names that a key holds: none, one or several."""
    return [value] if isinstance(value, str) else list(value or ())


class SoftLoss(pydantic.BaseModel):
    """A loss by which a student learns from its teacher, with its own arguments."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str
    weight: Positive = 1.0
    teacher_layers: tuple[str, ...] | None = None
    student_layers: tuple[str, ...] | None = None


class Taught(StageSettings):
    """A stage that may learn from teachers, live or by stored soft labels."""

    teacher: Name | tuple[Name, ...] | None = None
    soft_labels: Name | None = None
    losses: tuple[SoftLoss, ...] = ()
    temperature: Positive | tuple[tuple[Place, Positive], ...] = 4.0
    soft_weight: Weight | tuple[tuple[Place, Weight], ...] = 0.9
    training: Training = Training()

    @pydantic.model_validator(mode="after")
    def _one_teacher(self):
        if self.teacher and self.soft_labels:
            raise ValueError("expected one of `teacher` and `soft_labels`, got both")
        unused = {"losses", "temperature", "soft_weight"} & self.model_fields_set
        if unused and not (self.teacher or self.soft_labels):
            raise ValueError(
                f"`{sorted(unused)[0]}` needs a `teacher` or `soft_labels`; expected "
                "one of them, or the key removed"
            )
        if self.soft_labels and self.training.images != "train":
            raise ValueError(
                "`training.images` beyond train need a live `teacher`: soft labels are "
                "stored for the training images only"
            )
        if self.soft_labels and self.training.augment:
            raise ValueError(
                "`training.augment` is set by the `soft_labels` stage: remove it here"
            )
        return self

    def parents(self):
        return [*names(self.teacher), *names(self.soft_labels)]
