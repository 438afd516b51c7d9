"""The settings of each kind of stage."""

from typing import Annotated, Literal, get_args

import pydantic

from kdprune.config.settings import (
    Augment,
    Count,
    Importance,
    Model,
    Name,
    Names,
    Positive,
    Ratio,
    Share,
    StageSettings,
    Taught,
    Training,
    names,
)

_TARGETS = ("ratio", "target_macs", "target_parameters", "target_bytes", "threshold")


class Started(StageSettings):
    """A stage that trains a new model, or another stage's further."""

    model: Model | None = None
    from_: Name | None = pydantic.Field(default=None, alias="from")

    @pydantic.model_validator(mode="after")
    def _one_start(self):
        if (self.model is None) == (self.from_ is None):
            raise ValueError(
                "expected either `model` (a new one) or `from` (a stage whose model is "
                "trained further)"
            )
        return self

    def parents(self):
        return [self.from_] if self.from_ else self.model.parents()


class Train(Started):
    """Trains a model on labels alone: a teacher, the baseline, or one further."""

    kind: Literal["train"]
    training: Training = Training()


class Load(StageSettings):
    """Takes a model that is trained already, e.g. a given teacher."""

    kind: Literal["load"]
    file: str


class SoftLabels(StageSettings):
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


class Distill(Started, Taught):
    """Trains a student on labels and a teacher."""

    kind: Literal["distill"]

    @pydantic.model_validator(mode="after")
    def _has_teacher(self):
        if not Taught.parents(self):
            raise ValueError("expected `teacher` or `soft_labels`, got neither")
        return self

    def parents(self):
        return [*Started.parents(self), *Taught.parents(self)]


class Prune(Taught):
    """Zeroes weights: the smallest while training goes on, or any at once before it."""

    training: Training

    kind: Literal["prune"]
    from_: Name = pydantic.Field(alias="from")
    sparsity: Share | None = None
    beta: Ratio | None = None
    threshold: Positive | None = None
    by: Literal["magnitude", "gradient", "taylor", "activation"] = "magnitude"
    # How a sparsity is shared out among the layers.
    allocation: Literal["uniform", "lamp"] = "uniform"
    pattern: str | None = None
    schedule: Literal["polynomial", "constant", "one_shot"] = "polynomial"
    begin: Share = 0.0
    end: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.5
    frequency: Count = 50
    exclude: tuple[str, ...] = ()

    later = ("allocation",)

    @pydantic.model_validator(mode="after")
    def _one_target(self):
        targets = ("sparsity", "beta", "threshold")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(targets)}, got {given}")
        at_once = self.threshold is not None or self.by != "magnitude"
        if at_once and self.schedule != "one_shot":
            raise ValueError(
                "`threshold` and `by` choose weights once, before training: expected "
                f"schedule: one_shot, got {self.schedule}"
            )
        if self.schedule == "one_shot" and (self.sparsity or self.pattern):
            raise ValueError(
                "schedule: one_shot expects `threshold` or `beta`, and no `pattern`"
            )
        if self.allocation != "uniform" and (self.sparsity is None or self.pattern):
            raise ValueError(
                f"allocation: {self.allocation} shares a `sparsity` out among layers: "
                "expected `sparsity`, and no `pattern`, which sets that of each layer"
            )
        if self.by == "activation" and self.threshold is None:
            raise ValueError("by: activation expects `threshold`, a rate in (0, 1]")
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


class PruneChannels(Taught):
    """Removes channels, and trains what is left to recover."""

    kind: Literal["prune_channels"]
    from_: Name = pydantic.Field(alias="from")
    ratio: Ratio | None = None
    target_macs: Count | None = None
    target_parameters: Count | None = None
    target_bytes: Count | None = None
    threshold: Positive | None = None
    importance: str | Importance = "l2"
    scope: Literal["global", "per_cost", "local"] = "global"
    sensitivity: Name | None = None
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
        if self.threshold and self.steps > 1:
            raise ValueError(
                "`threshold` says at once which channels go: expected steps: 1, got "
                f"{self.steps}"
            )
        if self.threshold and self.scope == "per_cost":
            raise ValueError(
                "`threshold` limits no cost that scope: per_cost could weigh: expected "
                "scope: global, or a ratio or a target"
            )
        if self.sensitivity and (self.scope != "global" or self.threshold):
            raise ValueError(
                "`sensitivity` weighs groups of channels against each other: expected "
                "scope: global and a ratio or a target, got "
                f"{'`threshold`' if self.threshold else f'scope: {self.scope}'}"
            )
        return self

    def target(self):
        """How far to cut, as `prune.plan_channels` takes it."""
        given = {name: getattr(self, name) for name in _TARGETS}
        return {name: value for name, value in given.items() if value is not None}

    def parents(self):
        return [self.from_, *names(self.sensitivity), *super().parents()]


class PruneBlocks(Taught):
    """Removes residual blocks, and trains what is left to recover."""

    kind: Literal["prune_blocks"]
    from_: Name = pydantic.Field(alias="from")
    count: Count
    rank: Literal["loss", "angle"] = "loss"
    training: Training

    def parents(self):
        return [self.from_, *super().parents()]


class Sensitivity(StageSettings):
    """Measures what each group of channels can spare, without training."""

    kind: Literal["sensitivity"]
    from_: Name = pydantic.Field(alias="from")
    ratios: tuple[Ratio, ...] = pydantic.Field(default=(0.25, 0.5, 0.75), min_length=1)
    importance: str | Importance = "l2"
    round_to: Count = 8
    ignore: tuple[str, ...] = ()

    def parents(self):
        return [self.from_]


class Cluster(Taught):
    """Gives each kernel a few distinct weights, and trains them."""

    kind: Literal["cluster"]
    from_: Name = pydantic.Field(alias="from")
    clusters: Annotated[int, pydantic.Field(ge=2, le=256, strict=True)] = 16
    preserve_sparsity: bool | Literal["auto"] = "auto"
    exclude: tuple[str, ...] = ()
    training: Training

    def parents(self):
        return [self.from_, *super().parents()]


class Quantize(Taught):
    """Prepares a model for fewer bits: after training, or by training with them."""

    kind: Literal["quantize"]
    from_: Name = pydantic.Field(alias="from")
    method: Literal["ptq", "qat", "auto", "float16", "dynamic", "int16x8"] = "ptq"
    calibration: Count | None = None
    ranges: Literal["minmax", "percentile", "mse"] = "minmax"
    correct_bias: bool = False
    max_drop: Ratio | None = None
    preserve_sparsity: bool | Literal["auto"] = "auto"
    preserve_clusters: bool | Literal["auto"] = "auto"

    @pydantic.model_validator(mode="after")
    def _fits_the_method(self):
        given = {"training", "teacher", "soft_labels"} & self.model_fields_set
        if self.method not in ("qat", "auto") and given:
            raise ValueError(
                f"method {self.method} trains nothing, got `{sorted(given)[0]}`; "
                "remove it, or set method: qat"
            )
        if self.method == "qat" and "training" not in given:
            raise ValueError(
                "method qat expects `training`, with a learning rate about a hundredth "
                "of the one the model was trained with"
            )
        if self.method == "auto" and given and "training" not in given:
            raise ValueError(
                "method auto learns from a teacher in quantization-aware training: "
                "expected `training` as well"
            )
        chosen = {"ranges", "correct_bias"} & self.model_fields_set
        if self.method != "ptq" and chosen:
            raise ValueError(
                f"`{sorted(chosen)[0]}` is for method ptq, got {self.method}"
            )
        if self.method in ("float16", "dynamic") and self.calibration:
            raise ValueError(
                f"method {self.method} needs no images, got `calibration`; remove it"
            )
        if (self.method == "auto") != (self.max_drop is not None):
            raise ValueError(
                "method: auto and `max_drop`, the accuracy it may cost, belong together"
            )
        return self

    def parents(self):
        return [self.from_, *super().parents()]


class Export(StageSettings):
    """Writes and checks `.tflite` files."""

    kind: Literal["export"]
    from_: Names = pydantic.Field(alias="from")
    max_disagreement: Share = 0.05
    max_drop: Share = 0.01

    def parents(self):
        return list(self.from_)


class Evaluate(StageSettings):
    """Scores models and files on the test images; the only stage that does."""

    kind: Literal["evaluate"]
    from_: Names = pydantic.Field(alias="from")
    latency: bool = True
    threads: Count = 1
    resolver: Literal["xnnpack", "builtin", "reference"] = "xnnpack"

    def parents(self):
        return list(self.from_)


class Kit(StageSettings):
    """Writes the flagship's ship kit: a folder for those who build it in."""

    kind: Literal["kit"]
    from_: Name = pydantic.Field(alias="from")
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    version: str = "1"

    def parents(self):
        return [self.from_]


class Report(StageSettings):
    """Draws tables and plots from the measurements and sensitivities."""

    kind: Literal["report"]
    from_: Name | tuple[Name, ...] = pydantic.Field(alias="from")

    def parents(self):
        return names(self.from_)


Stage = Annotated[
    Train
    | Load
    | SoftLabels
    | Distill
    | Prune
    | PruneChannels
    | PruneBlocks
    | Sensitivity
    | Cluster
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
