"""How a stage trains: the model it starts from, what teaches it, and how long."""

import dataclasses
import functools
import os

from kdprune import data, distill, prune, quantize, training
from kdprune._graph import ends_in_softmax
from kdprune.data import batches
from kdprune.models import build_model, count_macs, load_model, reset_weights
from kdprune.models.precision import cast_model

MODEL = "model.keras"

# Multiply-accumulates a second for one core, forward and backward, as measured on
# small convolutional nets; the estimate is for planning an evening, no more.
_SPEED = {"float32": 25e9, "mixed_bfloat16": 50e9}


def fit_stage(run, node, folder, make_model, callbacks=(), cast=True):
    """Trains a model as the node's settings say; resumes what was half done.

    Args:
        run: The `pipeline.Run`.
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
    settings = node.settings.training
    held_out = settings.images == "train"
    teaching = _teaching(run, node)
    images = run.dataset.shown if teaching.present else run.dataset.train
    validation = run.dataset.validation
    if not held_out:
        images, validation = data.join_splits(images, validation), None
    fitting = _Fitting(
        stage=node.settings,
        teaching=teaching,
        validation=validation,
        cast=cast,
        make_model=make_model,
        callbacks=callbacks,
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


def new_model(run, node):
    """The model a stage starts from: another's, as it is or anew, or a factory's."""
    model = node.settings.model
    if model is None:
        return load_node(run, parent_of(node, "from_"))
    if model.like:
        return reset_weights(load_node(run, node.parents[model.like][0]))
    if model.file:
        return load_fitting(model.file, run.dataset)
    classes = len(run.dataset.classes)
    return build_model(
        model.name, run.dataset.image_shape, classes, **model.model_extra
    )


def load_fitting(path, dataset):
    """Loads a model file and checks that it takes these images to these classes.

    Raises:
        ValueError: If shape or classes differ, or if it gives probabilities.
    """
    model = load_model(path)
    expected = (tuple(dataset.image_shape), len(dataset.classes))
    received = (tuple(model.input_shape[1:]), model.output_shape[-1])
    if received != expected:
        raise ValueError(
            f"{path}: expected a model from images {expected[0]} to {expected[1]} "
            f"classes, as {dataset.name} has. Received: from {received[0]} to "
            f"{received[1]} classes; use a model trained on this data."
        )
    if ends_in_softmax(model):
        raise ValueError(
            f"{path}: expected a model that gives logits. Received: one that ends in "
            "softmax, whose probabilities would be taken for logits; save it with "
            "activation=None in its last layer"
        )
    return model


def load_node(run, node):
    """The trained model of a node, quantization-aware if it is that."""
    folder = run.folder / node.name
    if node.kind == "quantize":
        return quantize.load_quantized(folder)
    if node.kind == "load" and not run.record(node):
        return load_fitting(node.settings.file, run.dataset)
    return load_model(folder / MODEL)


def parents_of(node, key):
    """The nodes that a setting (`teacher`, `from_`, …) of this node names."""
    named = getattr(node.settings, key)
    names = [named] if isinstance(named, str) else named or ()
    return [node.parents[name][0] for name in names]


def parent_of(node, key):
    """The only node that a setting of this node names."""
    (parent,) = parents_of(node, key)
    return parent


def cast_teachers(teachers, precision):
    """The teachers, each computing in what `precision` is for it."""
    return [
        cast_model(teacher, training.resolve_precision(precision, teacher))
        for teacher in teachers
    ]


def soft_losses_of(settings):
    """The soft losses of settings, as `distill.Distiller` takes them."""
    losses = getattr(settings, "losses", ())
    return [loss.model_dump(exclude_none=True) for loss in losses]


def augment_of(settings):
    """The augmentation of settings, as `data.batches` takes it."""
    return settings.augment.model_dump() if settings.augment else None


def estimate_seconds(run, node):
    """Guesses how long a node will take, from MACs, images and epochs."""
    settings = getattr(node.settings, "training", None)
    images = run.dataset.description["sizes"]["train"]
    if node.taught:
        images += run.dataset.description["sizes"].get("unlabelled", 0)
    if node.kind == "soft_labels":
        work = _macs(run, node) * images * node.settings.views
    elif settings is None or not _trains(node.settings):
        return 30.0
    else:
        # The backward pass takes twice the forward one; QAT three times in all.
        factor = 9 if node.kind == "quantize" else 3
        epochs = settings.epochs * getattr(node.settings, "steps", 1)
        work = _macs(run, node) * images * epochs * factor
        if getattr(node.settings, "teacher", None):
            teachers = sum(_macs(run, other) for other in parents_of(node, "teacher"))
            work += teachers * images * epochs
    wrapped = node.kind in ("prune", "quantize")
    precision = getattr(settings or node.settings, "precision", "auto")
    policy = "float32" if wrapped else training.resolve_precision(precision)
    return work / (_SPEED[policy] * (os.cpu_count() or 1))


def _trains(settings):
    """Whether a stage trains: of those that quantize, the ones that were told how."""
    return settings.kind != "quantize" or "training" in settings.model_fields_set


@dataclasses.dataclass(frozen=True)
class _Teaching:
    """What a stage learns from beside labels."""

    teachers: tuple = ()
    logits: list | None = None
    augment: dict | None = None

    @property
    def present(self):
        return bool(self.teachers) or self.logits is not None


def _teaching(run, node):
    settings = node.settings
    if getattr(settings, "teacher", None):
        teachers = [load_node(run, parent) for parent in parents_of(node, "teacher")]
        return _Teaching(tuple(cast_teachers(teachers, settings.training.precision)))
    if getattr(settings, "soft_labels", None):
        store = parent_of(node, "soft_labels")
        logits = distill.load_soft_labels(run.folder / store.name)
        augment = augment_of(store.settings)
        if augment:
            augment["seed"] = store.settings.seed
        return _Teaching(logits=logits, augment=augment)
    return _Teaching()


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """One stage's way of training."""

    stage: object
    teaching: _Teaching
    validation: data.Split | None
    cast: bool
    make_model: object
    callbacks: tuple

    def __call__(self, split, epochs, folder, select="last", patience=None):
        """Trains a model; returns it, in float32, its history and its precision."""
        folder.mkdir(exist_ok=True)
        settings, teaching = self.stage.training, self.teaching
        steps = batches.steps_per_epoch(split, settings.batch_size)
        training.seed_everything(self.stage.seed)
        with training.strategy().scope():
            model = self.make_model(epochs * steps)
            if settings.slimming:
                model = prune.regularize_batch_norm(model, settings.slimming)
            policy = "float32"
            if self.cast:
                policy = training.resolve_precision(settings.precision, model)
            if policy != "float32":
                model = cast_model(model, policy)
            compiled = self._compile(model, epochs * steps)

        def stream(start):
            return batches.training_batches(
                split,
                settings.batch_size,
                epochs=epochs,
                seed=self.stage.seed,
                start_epoch=start,
                augment=teaching.augment or augment_of(settings),
                soft_labels=teaching.logits,
            )

        history = training.fit(
            compiled,
            stream,
            self.validation and batches.evaluation_batches(self.validation),
            epochs=epochs,
            steps=steps,
            folder=folder,
            select=select,
            patience=patience,
            callbacks=self.callbacks,
        )
        if policy != "float32":
            model = cast_model(model, "float32")
        if settings.slimming:
            model = prune.release_batch_norm(model)
        return model, history, policy

    def _compile(self, model, steps):
        settings = self.stage.training
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
            distiller = distill.Distiller(
                model, self.teaching.teachers, soft_losses_of(self.stage)
            )
            distiller.compile(
                optimizer,
                temperature=self.stage.temperature,
                soft_weight=self.stage.soft_weight,
                steps=steps,
                label_smoothing=settings.label_smoothing,
            )
            return distiller
        loss = functools.partial(
            training.cross_entropy, label_smoothing=settings.label_smoothing
        )
        model.compile(optimizer, loss=lambda y, z: loss(y, z), metrics=["accuracy"])
        return model


def _macs(run, node):
    if node.kind == "load":
        return count_macs(load_model(node.settings.file))
    model = getattr(node.settings, "model", None)
    if model and model.like:
        return _macs(run, node.parents[model.like][0])
    if model:
        return count_macs(new_model(run, node))
    for key in ("from_", "teacher"):
        if getattr(node.settings, key, None):
            return sum(_macs(run, parent) for parent in parents_of(node, key))
    return 0
