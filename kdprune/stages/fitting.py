"""How a stage trains: what teaches it, on which images, and how long."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdprune import data, distill, prune, quantize, training
from kdprune._graph import head_of, rebuild
from kdprune._log import logger
from kdprune.data import batches
from kdprune.models import count_macs, count_parameters, load_model, save_model
from kdprune.models.precision import cast_model
from kdprune.stages import loading
from kdprune.stages.base import MODEL, Node, Result, Run, Stage

if TYPE_CHECKING:
    import tf_keras as keras

    from kdprune.stages.settings import Augment

# Multiply-accumulates a second for one core, forward and backward, as measured on
# small convolutional nets; the estimate is for planning an evening, no more.
_SPEED = {"float32": 25e9, "mixed_bfloat16": 50e9}
# A measured step is one forward pass and one backward, which counts as two.
_MEASURED_PASSES = 3
# Trainings of more than about so many seconds are worth measuring a step beforehand.
_WORTH_MEASURING = 120.0


def fit_stage(
    run: Run,
    node: Node,
    folder: pathlib.Path,
    make_model: Callable[[int], keras.Model],
    callbacks: Sequence[Any] = (),
    cast: bool = True,
) -> tuple[keras.Model, dict[str, Any]]:
    """Trains a model as the node's settings say; resumes what was half done.

    Args:
        run: The run.
        node: A node with `training` settings.
        folder: The node's folder.
        make_model: Builds the float32 model to train, given the number of steps.
        callbacks: More Keras callbacks.
        cast: Whether the model may compute in the resolved precision; TFMOT's
            wrappers can't.

    Returns:
        `(model, results)`: the trained float32 model, and figures.

    Raises:
        TrainingDiverged: If the loss is not finite, naming the stage.
    """
    stage: Any = node.settings
    settings = stage.training
    held_out = settings.images == "train"
    teaching = _teaching(run, node)
    images = run.dataset.shown if teaching.present else run.dataset.train
    validation: data.Split | None = run.dataset.validation
    if not held_out:
        images = with_validation(run.dataset, images)
        validation = None
    fitting = _Fitting(
        stage=stage,
        teaching=teaching,
        validation=validation,
        cast=cast,
        make_model=make_model,
        callbacks=tuple(callbacks),
        head=run.dataset.head,
        class_weights=_class_weights(run, settings),
        workers=run.workers if stage.together() else None,
    )
    try:
        model, history, policy = fitting(
            images,
            settings.epochs,
            folder,
            select=settings.select,
            patience=settings.patience,
        )
    except training.TrainingDiverged as error:
        raise training.TrainingDiverged(f"stage {node.name}: {error}") from error
    # Weights may rightly cost the most frequent class its accuracy.
    if fitting.class_weights is None:
        _warn_if_nothing_learned(node.name, history[-1]["accuracy"], images.labels)
    results = {
        "precision": policy,
        "epochs": len(history),
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
    }
    if held_out:
        best = max(history, key=lambda row: row["val_accuracy"])
        chosen = best if settings.select == "best" else history[-1]
        results["best_epoch"] = int(best["epoch"])
        results |= {key: chosen[key] for key in ("val_accuracy", "val_loss")}
    return model, results


def _warn_if_nothing_learned(name: str, accuracy: float, labels: np.ndarray) -> None:
    """Warns of a training that ended where naming the commonest class would.

    Units that a large step left dead have finite losses, so nothing else shows it.
    """
    if labels.ndim > 1:
        return  # Each label has a share of its own, and accuracy is their mean.
    counts = np.bincount(labels[labels >= 0])
    share, total = counts.max(initial=0) / max(counts.sum(), 1), counts.sum()
    # Three standard deviations: by luck one training in a thousand.
    if total and accuracy <= share + 3 * math.sqrt(share * (1 - share) / total):
        logger.warning(
            "%s learned nothing: right on %.1f %% of its training images, where the "
            "most frequent class is %.1f %%. Try a lower learning rate, more epochs, "
            "or check that images and labels belong together",
            name,
            100 * accuracy,
            100 * share,
        )


def with_validation(dataset: data.Dataset, images: data.Split) -> data.Split:
    """The images to train on where validation images are trained on, too."""
    return data.join_splits(images, dataset.validation)


def _class_weights(run: Run, settings: Any) -> Any:
    if settings.class_weight is None:
        return None
    dataset = run.dataset
    return training.balanced_weights(dataset.train.labels, len(dataset.classes))


def load_node(run: Run, node: Node) -> keras.Model:
    """The trained model of a node, quantization-aware if it is that.

    Raises:
        ValueError: If it is not one that stages hand on, of logits of the data's
            classes: someone has put another in its place.
    """
    model = node.settings.load_model(run, node)
    loading.check_handed_on(model, run.dataset, node.name)
    return model


def save_outputs(
    model: keras.Model, folder: pathlib.Path, figures: dict[str, Any]
) -> Result:
    """Saves a stage's model; adds its parameters and MACs to the figures."""
    save_model(model, folder / MODEL)
    sizes = {"parameters": count_parameters(model), "macs": count_macs(model)}
    return Result({**figures, **sizes}, [MODEL])


def is_sparse(model: keras.Model, asked: bool | str) -> bool:
    """Whether zeros are to be kept: as asked, or by what the model has."""
    if asked != "auto":
        return bool(asked)
    # Networks have a few zeros by chance; pruned ones have many.
    return max(prune.layer_sparsity(model).values(), default=0.0) > 0.05


def is_clustered(model: keras.Model, asked: bool | str) -> bool:
    """Whether shared weights are to be kept: as asked, or by what the model has."""
    if asked != "auto":
        return bool(asked)
    # One kernel is enough: others may have been left out.
    return bool(quantize.clustered_layers(model))


def cast_teachers(teachers: Sequence[keras.Model], precision: str) -> list[keras.Model]:
    """The teachers, each computing in what `precision` is for it."""
    return [
        cast_model(teacher, training.resolve_precision(precision, teacher))
        for teacher in teachers
    ]


def soft_losses_of(settings: Stage) -> list[dict[str, Any]]:
    """The soft losses of settings, as `distill.Distiller` takes them."""
    losses = getattr(settings, "losses", ())
    return [loss.model_dump(exclude_none=True) for loss in losses]


def augment_of(settings: Any) -> dict[str, Any] | None:
    """The augmentation of settings, as `data.batches` takes it."""
    augment: Augment | None = settings.augment
    return augment.model_dump() if augment else None


def estimate_training(run: Run, node: Node) -> float:
    """Guesses how many seconds a node trains.

    By what a step took here when it was measured, if it was, else from MACs.
    """
    stage: Any = node.settings
    images = images_of(run, node) * stage.training.epochs
    teaching = sum(macs_of(run, one) for one in node.parents_of("teacher")) * images
    precision = "float32" if stage.in_float32 else stage.training.precision
    batch_size = stage.training.batch_size
    seconds = 0.0
    for network in _networks_of(run, node):
        work = count_macs(network) * images * stage.passes
        if measured := training.known_seconds(network, batch_size):
            step = measured["float32"] if stage.in_float32 else min(measured.values())
            seconds += images / batch_size * step * stage.passes / _MEASURED_PASSES
        else:
            seconds += seconds_for(work, precision)
    return seconds + seconds_for(teaching, precision)


def images_of(run: Run, node: Node) -> int:
    """How many images an epoch of a node has."""
    sizes, settings = run.dataset.description["sizes"], node.settings
    held = getattr(getattr(settings, "training", settings), "images", "train")
    count: int = sizes["train"] + (sizes["validation"] if held != "train" else 0)
    return count + (sizes.get("unlabelled", 0) if node.taught else 0)


def seconds_for(work: float, precision: str) -> float:
    """About how long so many multiply-accumulates take on this machine."""
    policy = training.resolve_precision(precision)
    return work / (_SPEED[policy] * (os.cpu_count() or 1))


def macs_of(run: Run, node: Node) -> int:
    """Multiply-accumulates of a node's model, or of those that it asks."""
    return sum(count_macs(network) for network in _networks_of(run, node))


def _networks_of(run: Run, node: Node) -> list[keras.Model]:
    """A node's network, or those that it asks, with any weights."""
    settings = node.settings
    if settings.origin() is not None:
        files = settings.files()
        return [load_model(files[0]) if files else settings.untrained_model(run, node)]
    for key in ("model.architecture_of", "from", "teacher"):
        if settings.references(key):
            parents = node.parents_of(key)
            return [model for one in parents for model in _networks_of(run, one)]
    return []


@dataclasses.dataclass(frozen=True)
class _Teaching:
    """What a stage learns from beside labels."""

    teachers: tuple[keras.Model, ...] = ()
    logits: Any = None
    augment: dict[str, Any] | None = None

    @property
    def present(self) -> bool:
        return bool(self.teachers) or self.logits is not None


def _teaching(run: Run, node: Node) -> _Teaching:
    if node.settings.references("teacher"):
        teachers = [load_node(run, parent) for parent in node.parents_of("teacher")]
        settings: Any = node.settings
        precision = settings.training.precision
        return _Teaching(tuple(cast_teachers(teachers, precision)))
    if node.settings.references("soft_labels"):
        store = node.parent_of("soft_labels")
        logits = distill.load_soft_labels(run.folder / store.name)
        dataset = run.dataset
        units = 1 if dataset.task == "binary" else len(dataset.classes)
        if logits[0].shape[1] != units:
            raise ValueError(
                f"stage {store.name!r}: expected soft labels of {units} outputs. "
                f"Received: {logits[0].shape[1]}; remove the folder, and run the stage "
                "again"
            )
        augment = augment_of(store.settings)
        if augment:
            augment["seed"] = store.settings.own_seed
        return _Teaching(logits=logits, augment=augment)
    return _Teaching()


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """One stage's way of training."""

    stage: Any
    teaching: _Teaching
    validation: data.Split | None
    cast: bool
    make_model: Callable[[int], keras.Model]
    callbacks: tuple[Any, ...]
    head: str | None
    class_weights: Any = None
    workers: Any = None

    def __call__(
        self,
        split: data.Split,
        epochs: int,
        folder: pathlib.Path,
        select: str = "last",
        patience: int | None = None,
    ) -> tuple[keras.Model, list[dict[str, Any]], str]:
        """Trains a model; returns it, in float32, its history and its precision."""
        folder.mkdir(exist_ok=True)
        settings, teaching = self.stage.training, self.teaching
        steps = batches.steps_per_epoch(split, settings.batch_size)
        training.seed_everything(self.stage.own_seed)
        workers = self.workers
        strategy = workers.strategy if workers else training.strategy()
        with strategy.scope():
            model = self._model(epochs * steps)
            policy = "float32"
            if self.cast:
                policy = training.resolve_precision(settings.precision, model)
                if workers:
                    policy = workers.agree(policy)
                elif self._is_worth_measuring(model, epochs * steps, policy):
                    policy = training.resolve_precision(
                        settings.precision, model, settings.batch_size
                    )
                    # Measuring drew random numbers; the model starts from its seed.
                    training.seed_everything(self.stage.own_seed)
                    model = self._model(epochs * steps)
            if policy != "float32":
                model = cast_model(model, policy)
            compiled = self._compile(model, epochs * steps)

        def stream(start, replicas=None):
            return batches.training_batches(
                split,
                settings.batch_size,
                epochs=epochs,
                seed=self.stage.own_seed,
                start_epoch=start,
                augment=teaching.augment or augment_of(settings),
                soft_labels=teaching.logits,
                replicas=replicas,
            )

        given, validation_steps = stream, None
        validation = self.validation and batches.evaluation_batches(self.validation)
        if workers:
            given = functools.partial(_shared, strategy, stream)
            if self.validation:
                held = functools.partial(batches.evaluation_batches, self.validation)
                validation = _shared(strategy, held)
                validation_steps = batches.evaluation_steps(
                    self.validation, replicas=strategy.num_replicas_in_sync
                )
            _start_alike(workers, compiled)
            # The others go on from where the chief was stopped.
            workers.share(folder / "checkpoints")
        checkpoints = folder / "checkpoints"
        start = model.get_weights() if checkpoints.exists() else []
        try:
            history = training.fit(
                compiled,
                given,
                validation,
                epochs=epochs,
                steps=steps,
                validation_steps=validation_steps,
                folder=folder,
                select=select,
                patience=patience,
                callbacks=self.callbacks,
            )
        except training.ForeignCheckpoint as error:
            if workers:
                raise
            # By the fingerprint it is this stage's: what it makes of the model changed.
            logger.warning(
                "%s: begun by another version of kdprune, which trained another form "
                "of the model: it starts again (%s)",
                folder,
                str(error).partition(". ")[0],
            )
            shutil.rmtree(checkpoints)
            model.set_weights(start)  # Some may have been restored before it was told.
            return self(split, epochs, folder, select, patience)
        if policy != "float32":
            model = cast_model(model, "float32")
        if settings.bn_l1:
            model = prune.strip_bn_l1(model)
        return model, history, policy

    def _model(self, steps: int) -> keras.Model:
        model = self.make_model(steps)
        if not training.is_in_scope(model):
            model = rebuild(model)  # Made elsewhere, it can't be mirrored.
        bn_l1 = self.stage.training.bn_l1
        return prune.add_bn_l1(model, bn_l1) if bn_l1 else model

    def _is_worth_measuring(
        self, model: keras.Model, steps: int, precision: str
    ) -> bool:
        settings = self.stage.training
        work = count_macs(model) * settings.batch_size * steps * self.stage.passes
        return (
            settings.precision == "auto"
            and seconds_for(work, precision) > _WORTH_MEASURING
        )

    def _compile(self, model: keras.Model, steps: int) -> keras.Model:
        settings = self.stage.training
        # Callbacks are called between groups of steps only.
        together = (
            1 if self.callbacks else training.steps_together(model, settings.batch_size)
        )
        optimizer = training.build_optimizer(
            settings.optimizer,
            settings.learning_rate,
            steps=steps,
            schedule=settings.schedule,
            warmup=settings.warmup,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            ema=settings.ema,
        )
        if self.teaching.present:
            with _warnings_logged():  # Of a teacher smaller than its student.
                distiller = distill.Distiller(
                    model,
                    self.teaching.teachers,
                    soft_losses_of(self.stage),
                    head=self.head,
                )
            distiller.compile(
                optimizer,
                temperature=self.stage.temperature,
                soft_weight=self.stage.soft_weight,
                steps=steps,
                label_smoothing=settings.label_smoothing,
                class_weights=self.class_weights,
                steps_per_execution=together,
            )
            return distiller
        head = head_of(model, f"model {model.name!r}", self.head)
        loss = functools.partial(
            training.weight_classes(training.HARD_LOSSES[head], self.class_weights),
            label_smoothing=settings.label_smoothing,
        )
        metrics = [training.accuracy_metric(head)]
        model.compile(
            optimizer,
            loss=lambda y, z: loss(y, z),
            metrics=metrics,
            steps_per_execution=together,
        )
        return model


def _start_alike(workers: Any, model: keras.Model) -> None:
    """Gives all workers the chief's weights.

    What was computed to make the model (scores, ranges) is rounded by each processor
    in its own way.
    """
    # Some are means over the workers, which all must ask for.
    values = [variable.numpy() for variable in model.variables]
    shapes = [list(value.shape) for value in values]
    if workers.agree(shapes) != shapes:
        raise ValueError(
            "expected the chief's model, whose weights have other shapes: what it was "
            "pruned by was rounded otherwise by this worker's processor. Run "
            "this stage with --until on one host, then go on with all"
        )
    given = workers.agree_on_arrays(values)
    for variable, value in zip(model.variables, given, strict=True):
        variable.assign(value)


def _shared(strategy: Any, stream: Callable[..., Any], *arguments: Any) -> Any:
    """Batches of which each worker reads its replicas' rows."""

    def own(context):
        own = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * own
        replicas = (range(first, first + own), context.num_replicas_in_sync)
        return stream(*arguments, replicas=replicas)

    return strategy.distribute_datasets_from_function(own)


@contextlib.contextmanager
def _warnings_logged() -> Iterator[None]:
    """Logs what is warned of meanwhile, as a line instead of Python's two."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        logger.warning("%s", warning.message)
