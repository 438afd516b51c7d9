"""What stages that train have in common: their settings, and where they start from."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic

from kdprune.stages.base import FLOAT_MODEL, SOFT_LABELS, Node, Result, Run, Stage
from kdprune.stages.settings import (
    Model,
    Name,
    Place,
    Positive,
    SoftLoss,
    Training,
    Weight,
)

if TYPE_CHECKING:
    import tf_keras as keras


class Trains(Stage):
    """A stage that trains a model.

    Attributes:
        passes: Forward passes that a step of training costs: a backward one takes two.
        in_float32: Whether it trains in float32, as wrapped layers must.
    """

    passes: ClassVar[int] = 3
    in_float32: ClassVar[bool] = False

    training: Training = Training()
    """How it trains."""

    def trains(self) -> bool:
        """Whether it trains with these settings."""
        return True

    def together(self) -> bool:
        return self.trains()

    def check(self, run: Run, node: Node) -> None:
        super().check(run, node)
        if run.workers and self.together():
            self._check_shares(run, node)
        if self.training.class_weight and run.dataset.task == "labels":
            raise ValueError(
                f"stages.{node.stage}.training.class_weight: expected data of one "
                "class for each image, got labels of which several may apply; remove it"
            )
        if self.training.bn_l1 and not isinstance(self, Started):
            raise ValueError(
                f"stages.{node.stage}.training.bn_l1: expected in a train or distill "
                "stage, whose channels are pruned by bn_scale later, got it in a "
                f"{node.kind} stage"
            )

    def _check_shares(self, run: Run, node: Node) -> None:
        """Each replica gets as much of a batch, and some of the validation images."""
        from kdprune.stages import fitting

        shares = run.workers.strategy.num_replicas_in_sync
        size = min(self.training.batch_size, fitting.images_of(run, node))
        if size % shares:
            raise ValueError(
                f"stages.{node.stage}.training.batch_size: expected a multiple of "
                f"{shares}, the replicas that share a batch, got {size}"
            )
        if len(run.dataset.validation) < shares:
            raise ValueError(
                f"data.validation: expected at least {shares} images, one for each "
                f"replica, got {len(run.dataset.validation)}"
            )

    def estimate(self, run: Run, node: Node) -> float:
        from kdprune.stages import fitting

        if not self.trains():
            return super().estimate(run, node)
        return fitting.estimate_training(run, node)


class Started(Trains):
    """A stage that trains a new model, or another stage's further."""

    keeps_layers = True
    accepts = {"from": (FLOAT_MODEL,), "model.architecture_of": (FLOAT_MODEL,)}
    gives = FLOAT_MODEL

    model: Model | None = None
    """A new model to train."""
    from_: Name | None = pydantic.Field(default=None, alias="from")
    """A stage whose model is trained further. Give this or `model`."""

    @pydantic.model_validator(mode="after")
    def _one_start(self) -> Started:
        if (self.model is None) == (self.from_ is None):
            raise ValueError(
                "expected either `model` (a new one) or `from` (a stage whose model is "
                "trained further)"
            )
        return self

    def origin(self) -> object | None:
        model = self.model
        return model if model and not model.architecture_of else None

    def check_files(self, run: Run, node: Node) -> None:
        from kdprune.models.factories import check_model_arguments

        if self.model is not None and self.model.name:
            try:
                check_model_arguments(self.model.name, self.model.arguments)
            except ValueError as error:
                raise ValueError(f"stages.{node.stage}.model: {error}") from error
        super().check_files(run, node)

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        from kdprune.stages import fitting

        model, results = fitting.fit_stage(
            run, node, folder, lambda steps: self.starting_model(run, node)
        )
        return fitting.save_outputs(model, folder, results)

    def starting_model(self, run: Run, node: Node) -> keras.Model:
        """The model that it trains.

        That is another stage's as it is or with new weights, a file's, or a factory's.
        """
        from kdprune.models import reset_weights
        from kdprune.stages import fitting, loading

        if self.model is None:
            return fitting.load_node(run, node.parent_of("from"))
        if self.model.architecture_of:
            copied = node.parent_of("model.architecture_of")
            return reset_weights(fitting.load_node(run, copied))
        if self.model.file:
            range_ = self.model.input_range
            return loading.load_in_range(self.model.file, run.dataset, range_)[0]
        return self.untrained_model(run, node)

    def untrained_model(self, run: Run, node: Node) -> keras.Model:
        from kdprune.models import build_model
        from kdprune.stages import loading

        model, dataset = self.model, run.dataset
        assert model is not None  # Where there is an origin.
        if model.file:
            return loading.load_layers(model.file, dataset, model.input_range)
        assert model.name is not None  # One of the three is given.
        units = 1 if dataset.task == "binary" else len(dataset.classes)
        return build_model(model.name, dataset.image_shape, units, **model.arguments)


class Taught(Trains):
    """A stage that may learn from teachers, live or by stored soft labels."""

    accepts = {"teacher": (FLOAT_MODEL,), "soft_labels": (SOFT_LABELS,)}

    teacher: Name | tuple[Name, ...] | None = None
    """Stages whose models teach in the loop; several teach by the mean of their
    logits."""
    soft_labels: Name | None = None
    """A `soft_labels` stage, whose cached logits teach instead."""
    losses: tuple[SoftLoss, ...] = ()
    """What is learned from the teacher; `kl` if empty."""
    temperature: Positive | tuple[tuple[Place, Positive], ...] = 4.0
    """Temperature of the losses of logits: a number, or points between which it
    moves in straight lines."""
    soft_weight: Weight | tuple[tuple[Place, Weight], ...] = 0.9
    """Weight of the teacher's losses; the labels' is 1 - this. A number or points."""

    @pydantic.model_validator(mode="after")
    def _one_teacher(self) -> Taught:
        if self.teacher and self.soft_labels:
            raise ValueError("expected one of `teacher` and `soft_labels`, got both")
        unused = {"losses", "temperature", "soft_weight"} & self.model_fields_set
        if unused and not (self.teacher or self.soft_labels):
            raise ValueError(
                f"`{sorted(unused)[0]}` needs a `teacher` or `soft_labels`; expected "
                "one of them, or the key removed"
            )
        if self.soft_labels and self.training.augment:
            raise ValueError(
                "`training.augment` is set by the `soft_labels` stage: remove it here"
            )
        return self

    def check_recipe(self, name: str, recipe: Any) -> None:
        super().check_recipe(name, recipe)
        if self.soft_labels:
            stored = recipe.stages[self.soft_labels].images
            if stored != self.training.images:
                raise ValueError(
                    f"stages.{name}.training.images: expected {stored}, of which "
                    f"{self.soft_labels!r} stores soft labels, got "
                    f"{self.training.images}; set `images` of both to the same"
                )

    def check(self, run: Run, node: Node) -> None:
        from kdprune.stages.teaching import check_teaching

        super().check(run, node)
        if self.taught:
            check_teaching(run, node)


class Compressed(Taught):
    """A stage that makes another stage's model smaller, and may train it further."""

    accepts = {"from": (FLOAT_MODEL,), **Taught.accepts}
    gives = FLOAT_MODEL

    from_: Name = pydantic.Field(alias="from")
    """The stage whose model it starts from."""
