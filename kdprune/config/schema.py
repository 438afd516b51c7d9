"""The recipe's schema: every key with its type and range."""

from typing import Annotated, Any, Literal, get_args

import pydantic

Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Weight = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Positive = Annotated[float, pydantic.Field(gt=0.0)]
Count = Annotated[int, pydantic.Field(ge=1, strict=True)]
_TARGETS = ("ratio", "target_macs", "target_parameters", "target_bytes", "threshold")
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**31, strict=True)]
# Points (share of training, value), between which a value moves in straight lines.
Place = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Name = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Settings):
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


class Augment(_Settings):
    """Random changes of the training images; see `data.batches`."""

    crop: Annotated[int, pydantic.Field(ge=0)] = 4
    flip: bool | Literal["alternating"] = True
    cutout: Annotated[int, pydantic.Field(ge=0)] = 0


class Training(_Settings):
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

    @pydantic.model_validator(mode="after")
    def _chooses_on_unseen(self):
        if self.images != "train" and (self.select == "best" or self.patience):
            raise ValueError(
                "images: train+validation leaves none to choose an epoch by; expected "
                "select: last and no patience"
            )
        return self


class Model(pydantic.BaseModel):
    """A factory's name and its arguments, or the path of a saved model."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    file: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.file is None):
            raise ValueError("expected either `name` (a factory) or `file` (a model)")
        if self.file and self.model_extra:
            raise ValueError(f"expected no more than `file`, got {self.model_extra}")
        return self


class _Stage(_Settings):
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


class _Taught(_Stage):
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


class Train(_Stage):
    """Trains a model on labels alone: a teacher, the baseline, or one further."""

    kind: Literal["train"]
    model: Model | None = None
    from_: Name | None = pydantic.Field(default=None, alias="from")
    training: Training = Training()

    @pydantic.model_validator(mode="after")
    def _one_start(self):
        if (self.model is None) == (self.from_ is None):
            raise ValueError(
                "expected either `model` (a new one) or `from` (a stage whose model is "
                "trained further)"
            )
        return self

    def parents(self):
        return [self.from_] if self.from_ else []


class Load(_Stage):
    """Takes a model that is trained already, e.g. a given teacher."""

    kind: Literal["load"]
    file: str


class SoftLabels(_Stage):
    """Stores a teacher's logits for augmentation views of the training images."""

    kind: Literal["soft_labels"]
    teacher: Name | tuple[Name, ...]
    views: Count = 1
    augment: Augment | None = None
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"

    @pydantic.model_validator(mode="after")
    def _views_differ(self):
        if self.views > 1 and self.augment is None:
            raise ValueError("several `views` need `augment`, or they are all alike")
        return self

    def parents(self):
        return names(self.teacher)


class Distill(_Taught):
    """Trains a student on labels and a teacher."""

    kind: Literal["distill"]
    model: Model

    @pydantic.model_validator(mode="after")
    def _has_teacher(self):
        if not self.parents():
            raise ValueError("expected `teacher` or `soft_labels`, got neither")
        return self


class Prune(_Taught):
    """Zeroes the smallest weights while training goes on."""

    training: Training

    kind: Literal["prune"]
    from_: Name = pydantic.Field(alias="from")
    sparsity: Share | None = None
    beta: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    schedule: Literal["polynomial", "constant"] = "polynomial"
    begin: Share = 0.0
    end: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.5
    frequency: Count = 50
    exclude: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _one_target(self):
        if (self.sparsity is None) == (self.beta is None):
            raise ValueError("expected one of `sparsity` and `beta`")
        chosen = self.training
        if chosen.select == "best" or chosen.patience:
            # An epoch chosen for its accuracy is one before the zeros are there.
            raise ValueError(
                "`training` of a prune stage expects select: last and no patience"
            )
        if self.end <= self.begin:
            raise ValueError(f"expected begin < end, got {self.begin} and {self.end}")
        return self

    def parents(self):
        return [self.from_, *super().parents()]


class PruneChannels(_Taught):
    """Removes channels, and trains what is left to recover."""

    kind: Literal["prune_channels"]
    from_: Name = pydantic.Field(alias="from")
    ratio: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] | None = None
    target_macs: Count | None = None
    target_parameters: Count | None = None
    target_bytes: Count | None = None
    threshold: Positive | None = None
    importance: str = "l2"
    scope: Literal["global", "local"] = "global"
    round_to: Count = 8
    ignore: tuple[str, ...] = ()
    steps: Count = 1
    training: Training

    @pydantic.model_validator(mode="after")
    def _one_target(self):
        if len(self.target()) != 1:
            raise ValueError(
                f"expected one of {', '.join(_TARGETS)}, got "
                f"{', '.join(self.target()) or 'none'}"
            )
        return self

    def target(self):
        """How far to cut, as `prune.plan_channels` takes it."""
        given = {name: getattr(self, name) for name in _TARGETS}
        return {name: value for name, value in given.items() if value is not None}

    def parents(self):
        return [self.from_, *super().parents()]


class Quantize(_Taught):
    """Prepares a model for int8: after training, or by training with it."""

    kind: Literal["quantize"]
    from_: Name = pydantic.Field(alias="from")
    method: Literal["ptq", "qat"] = "ptq"
    preserve_sparsity: bool | Literal["auto"] = "auto"

    @pydantic.model_validator(mode="after")
    def _trains_or_not(self):
        given = {"training", "teacher", "soft_labels"} & self.model_fields_set
        if self.method == "ptq" and given:
            raise ValueError(
                f"method ptq trains nothing, got `{sorted(given)[0]}`; remove it, or "
                "set method: qat"
            )
        if self.method == "qat" and "training" not in given:
            raise ValueError(
                "method qat expects `training`, with a learning rate about a hundredth "
                "of the one the model was trained with"
            )
        return self

    def parents(self):
        return [self.from_, *super().parents()]


class Export(_Stage):
    """Writes and checks `.tflite` files."""

    kind: Literal["export"]
    from_: tuple[Name, ...] = pydantic.Field(alias="from", min_length=1)
    max_disagreement: Share = 0.05
    max_drop: Share = 0.01

    def parents(self):
        return list(self.from_)


class Evaluate(_Stage):
    """Scores models and files on the test images; the only stage that does."""

    kind: Literal["evaluate"]
    from_: tuple[Name, ...] = pydantic.Field(alias="from", min_length=1)
    latency: bool = True
    threads: Count = 1
    resolver: Literal["xnnpack", "builtin", "reference"] = "xnnpack"

    def parents(self):
        return list(self.from_)


class Kit(_Stage):
    """Writes the flagship's ship kit: a folder for those who build it in."""

    kind: Literal["kit"]
    from_: Name = pydantic.Field(alias="from")
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    version: str = "1"

    def parents(self):
        return [self.from_]


class Report(_Stage):
    """Draws tables and plots from the measurements."""

    kind: Literal["report"]
    from_: Name = pydantic.Field(alias="from")

    def parents(self):
        return [self.from_]


Stage = Annotated[
    Train
    | Load
    | SoftLabels
    | Distill
    | Prune
    | PruneChannels
    | Quantize
    | Export
    | Evaluate
    | Kit
    | Report,
    pydantic.Field(discriminator="kind"),
]
KINDS = {
    get_args(cls.model_fields["kind"].annotation)[0]: cls
    for cls in get_args(get_args(Stage)[0])
}


class Recipe(_Settings):
    """All that determines a run; see `configs/` for examples.

    `baseline` is the stage that others are held against; `flagship` the quantize
    stage whose int8 and uint8 files are copied to the run's top, and `keep` the
    models that are saved there in half precision, all named beforehand. A stage in
    `seeds` is run with only the first so many seeds of the matrix, and so is what
    builds on it.
    """

    name: Name
    seed: Seed = 1
    data: Data
    baseline: Name | None = None
    flagship: Name | None = None
    keep: tuple[Name, ...] = ()
    seeds: dict[Name, Count] = {}
    matrix: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = {}
    stages: dict[Name, Stage] = pydantic.Field(min_length=1)
