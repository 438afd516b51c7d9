"""The Distiller: a Keras model that trains a student on labels and on teachers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import (
    check_repeatable,
    check_trains,
    final_activation,
    head_of,
    is_graph_model,
)
from kdprune._registry import suggesting
from kdprune.distill import pixels, targets
from kdprune.distill.feature_extractor import feature_extractor, match_feature_layers
from kdprune.distill.loss_spec import SoftLoss, as_soft_losses, plain_line
from kdprune.distill.schedule import Schedule, Value
from kdprune.intake import PixelRange, parse_range, select_output
from kdprune.intake.pixels import Given
from kdprune.models.counts import count_parameters
from kdprune.training.class_weights import weight_classes
from kdprune.training.losses import HARD_LOSSES, accuracy_metric
from kdprune.training.optimizers import build_variables


@keras.saving.register_keras_serializable("kdprune")
class Distiller(keras.Model):
    """Trains a student on hard labels and on a teacher.

    Compiled, fitted, evaluated and used like the student alone: predictions and
    saved files are the student's. Teachers run in inference mode (their BatchNorm
    statistics stay) and receive no gradient. What a feature loss learns beside the
    student is trained and checkpointed with it, and never saved.

    Targets in `fit` are labels, or None where there are none, which need a teacher
    here; or a pair of labels and stored teacher logits `(batch, classes)`, which needs
    none. Labels are class indices `(batch,)`, or rows of probabilities `(batch,
    classes)`: one-hot, or mixed. A label that is missing, an index of -1 or a row of
    zeros, leaves an example to the soft losses alone. Losses that take labels and
    metrics are given indices, those of a row's likeliest class.

    With `head="sigmoid"`, and always of a single unit, each output is a label that
    applies or not: labels are rows of 1 and 0, `(batch, labels)`, of a single unit
    `(batch,)` as well, all -1 where they are missing. The hard loss is the binary
    cross-entropy, "kl" the divergence of each yes or no, and losses that take labels
    and metrics are given the rows.

    Args:
        student: The `keras.Model` to train; logits out. Subclassed, or wrapped for
            pruning or quantization-aware training, as well.
        teacher: A trained `keras.Model`; logits out. Several, in a list, teach by
            the mean of their logits. None if every batch brings the logits.
        losses: What the student learns from the teacher, a list of functions of
            logits, Keras losses, registered names, dicts or `SoftLoss` objects (see
            there); "kl" if None or empty. Losses of features need layer graphs and
            one teacher.
        head: What makes probabilities of the logits: "sigmoid" where several labels
            may apply to an image; "softmax", for one of several classes, if None. A
            single unit is of sigmoid.
        input_range: What the models take for black and white, `(low, high)`, or
            another form that `take_model` knows: pixels that `fit` and `evaluate` are
            given are held against it. By default against what the models' first layers
            tell; of models that tell nothing, bytes are warned of.

    Raises:
        ValueError: If one of them is no `tf_keras` model; if teacher and student
            differ in classes or images, share weights or layers that are yet to be
            built, or give probabilities; if a loss is not valid, or needs a teacher
            or layers that are not there. For models without
            a graph, some of this is found by the first batch of `fit` only.

    Warns:
        UserWarning: If a teacher is smaller than the student: they may be exchanged.

    Example:
        >>> distiller = Distiller(student, teacher)
        >>> distiller.compile("adam", temperature=4.0, soft_weight=0.9)
        >>> distiller.fit(images, labels, epochs=10)
        >>> student.save("student.keras")
    """

    train_function: Any
    test_function: Any

    @suggesting
    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | Sequence[keras.Model] | None = None,
        losses: Sequence[Any] | None = None,
        name: str = "distiller",
        head: str | None = None,
        input_range: Given | None = None,
    ) -> None:
        super().__init__(name=name)
        given = teacher if isinstance(teacher, list | tuple) else [teacher]
        teachers = [model for model in given if model is not None]
        _check_model(student, "student")
        for model in teachers:
            _check_model(model, "teacher")
            _check_pair(model, student)
        # A subclassed model has no shape yet, which tells a single unit.
        models = sorted((student, *teachers), key=lambda one: _classes(one) is None)
        for model in models:
            head = _check_logits_out(model, head)
        self._head = str(head)
        specs = as_soft_losses(losses)
        classes = _classes(student)
        if classes is not None:
            for loss in specs:
                loss.validate(classes, self._head)
        for model in teachers:
            _warn_if_smaller(model, student)
        self.student = student
        self.feature_losses: list = []
        self._input_range = None if input_range is None else parse_range(input_range)
        self._hide(teachers, specs)
        if student.built:
            self.built = True

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _hide(self, teachers: list, losses: tuple[SoftLoss, ...]) -> None:
        """Keeps from Keras what must not be trained, counted, checkpointed, saved."""
        self.teachers = teachers
        self.soft_losses = losses
        names = ["loss", "soft_loss", "hard_loss"]
        if len(losses) > 1:
            names += [f"{loss.name}_loss" for loss in losses]
        self._loss_means = {name: keras.metrics.Mean(name) for name in names}
        self._student_extractor: keras.Model = self.student
        self._teacher_extractor: keras.Model | None = None
        self._feature_slices: list[slice] = []
        # Digests of teachers' weights that are nobody's: what `from_config` drew.
        self._initial: list[str] = []
        self._classes = _classes(self.student)
        # The largest number of a batch, to warn of bytes in data sets.
        self._largest_pixel = keras.metrics.Mean("largest_pixel")
        self._looked_for_bytes = False
        self._ranges: list = []
        if any(loss.of_features for loss in losses):
            self._extract_features()

    def _extract_features(self) -> None:
        """Makes both models give the features that the losses compare."""
        if len(self.teachers) != 1:
            raise ValueError(
                "losses of features need one teacher in the loop, since only logits "
                f"are averaged or stored. Received: {len(self.teachers)} teachers"
            )
        (teacher,) = self.teachers
        of_features = [loss for loss in self.soft_losses if loss.of_features]
        layers: tuple[list, list] = ([], [])
        for loss in of_features:
            pairs = _layers_of(loss, teacher, self.student)
            start = len(layers[0])
            for all_names, names in zip(layers, pairs, strict=True):
                all_names.extend(names)
            self._feature_slices.append(slice(start, len(layers[0])))
        extractors = [
            feature_extractor(model, names)
            for model, names in zip((teacher, self.student), layers, strict=True)
        ]
        self._teacher_extractor, self._student_extractor = extractors
        shapes = [
            [output.shape for output in model.outputs[1:]] for model in extractors
        ]
        for loss, part in zip(of_features, self._feature_slices, strict=True):
            given = {"name": loss.name, **loss.arguments}
            made = loss.computation(shapes[0][part], shapes[1][part], **given)
            self.feature_losses.append(made)

    @suggesting
    def compile(
        self,
        optimizer: Any = "rmsprop",
        *,
        temperature: Value = 4.0,
        soft_weight: Value = 0.9,
        steps: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        metrics: Sequence[Any] = ("accuracy",),
        weighted_metrics: Sequence[Any] | None = None,
        run_eagerly: bool | None = None,
        steps_per_execution: int | None = None,
        jit_compile: bool | None = None,
        loss: None = None,
    ) -> None:
        """Configures the losses: `soft_weight * soft + (1 - soft_weight) * hard`.

        `soft` is the sum of the soft losses, each times its own weight.

        Args:
            optimizer: As in `keras.Model.compile`.
            temperature: T > 0 of the losses of logits: a number, or points
                `(share of training, value)` between which it moves in straight
                lines.
            soft_weight: Weight in [0, 1] of the soft losses; a number or points. Two
                phases, first soft then hard labels, are
                `[(0, 1), (0.5, 1), (0.5, 0), (1, 0)]`.
            steps: Optimizer steps of the whole training; needed for points.
            label_smoothing: Of the hard loss, in [0, 1).
            class_weights: By which the hard loss of each class's examples is
                multiplied in training; None for 1.
            metrics: As in `keras.Model.compile`, of class indices and logits;
                "accuracy" of sigmoid is the share of right labels.
            weighted_metrics: As in `keras.Model.compile`.
            run_eagerly: As in `keras.Model.compile`.
            steps_per_execution: As in `keras.Model.compile`.
            jit_compile: As in `keras.Model.compile`.
            loss: Must stay None: a Distiller has its own losses.

        Raises:
            ValueError: If a value is out of range.
        """
        if loss is not None:
            raise ValueError(
                "a Distiller has its own losses, set by temperature and soft_weight. "
                f"Received: loss={loss!r}; remove it."
            )
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                f"label_smoothing must be in [0, 1). Received: {label_smoothing}"
            )
        self._temperature = Schedule(
            temperature, steps, name="temperature", closed=False
        )
        self._soft_weight = Schedule(soft_weight, steps, name="soft_weight", high=1.0)
        self._label_smoothing = label_smoothing
        self._class_weights = (
            None if class_weights is None else [float(w) for w in class_weights]
        )
        super().compile(
            optimizer=optimizer,
            metrics=[
                accuracy_metric(self._head) if metric == "accuracy" else metric
                for metric in metrics
            ],
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs, training=training)

    @property
    def metrics(self) -> list:
        return [*self._loss_means.values(), *super().metrics]

    def fit(self, x: Any = None, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Trains the student; see `keras.Model.fit`.

        Raises:
            ValueError: If images or targets do not fit, or pixels are not of the range
                that a model takes (see `input_range`): arrays are checked before
                training, other data as it comes. The Distiller can be fitted again.
                Or if all of the student is frozen.

        Warns:
            UserWarning: If images are bytes and no model scales them.
        """
        check_trains(self.student)
        self._check_teachers_are_trained()
        x, y = self._as_array(x), targets.from_lists(y)
        self._check_arrays(x, y)
        self._check_pixels(x)
        given = options.get("validation_data")
        if isinstance(given, tuple | list) and len(given) >= 2:
            self._check_arrays(*given[:2])
        with self._plain_errors():
            return super().fit(x, y, *arguments, **options)

    def evaluate(
        self, x: Any = None, y: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        """Scores the student on labels; see `keras.Model.evaluate`.

        Raises:
            ValueError: As `fit`.
        """
        x, y = self._as_array(x), targets.from_lists(y)
        if "_use_cached_eval_dataset" not in options:  # As `fit` does each epoch.
            self._check_arrays(x, y)
            self._check_pixels(x)
        with self._plain_errors():
            return super().evaluate(x, y, *arguments, **options)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function of a step, once what it trains is there."""
        made = [getattr(loss, "built", False) for loss in self.feature_losses]
        # Others make their weights when they are called.
        if is_graph_model(self.student) and all(made):
            build_variables(self)
        before = self.train_function
        step = super().make_train_function(force)
        if self._ranges or step is before:
            return step

        def warning_of_bytes(iterator: Any) -> Any:
            logs = step(iterator)
            if not self._looked_for_bytes:
                self._looked_for_bytes = True
                if self._largest_pixel.result() > pixels.LEAST_OF_BYTES:
                    _warn_of_bytes((self.student, *self.teachers))
            return logs

        self.train_function = warning_of_bytes
        return self.train_function

    def _as_array(self, images: Any) -> Any:
        """A list of images as an array, which Keras takes for a list of inputs."""
        single = isinstance(getattr(self.student, "input_shape", None), tuple)
        return np.asarray(images) if single and isinstance(images, list) else images

    def _check_arrays(self, images: Any, labels: Any) -> None:
        shape = getattr(self.student, "input_shape", None)
        shape = shape[1:] if isinstance(shape, tuple) else None
        targets.check_arrays(images, labels, self._classes, shape, self._head)

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _check_pixels(self, images: Any) -> None:
        """Holds arrays against the models' range, and gets ready for other data."""
        models = (self.student, *self.teachers)
        ranges = pixels.known_ranges(models, self._input_range)
        if ranges != self._ranges:
            self._ranges = ranges
            self.train_function = self.test_function = None
        if isinstance(images, np.ndarray) and images.size:
            wrong = pixels.fault(ranges, images.min(), images.max())
            if wrong:
                raise ValueError(wrong)
            if images.dtype == np.uint8 and not ranges:
                self._looked_for_bytes = True
                _warn_of_bytes(models)

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Raises an error within a step as one line, without TensorFlow's traceback."""
        try:
            yield
        except BaseException as error:
            # A step that failed while it was traced can't be traced again.
            self.train_function = self.test_function = None
            if isinstance(error, tf.errors.InvalidArgumentError):
                line = targets.explain(str(error), self._classes)
                if targets.PROBABILITIES in str(error):
                    line = _without_softmax("a model or the stored labels")
                elif pixels.WRONG_PIXELS in str(error):
                    line = pixels.explain(self._ranges, str(error))
                failed = re.search(r"\n([^\n]+)\n\s*\[\[\{\{node", str(error))
                if line is None and failed is not None:
                    raise ValueError(f"a step failed: {failed[1]}") from error
                if line is not None:
                    raise ValueError(line) from None
            traced = isinstance(error, ValueError | TypeError)
            if traced and str(error).startswith("in user code"):
                raise ValueError(plain_line(error)) from error
            raise

    def train_step(self, data: Any) -> dict[str, Any]:
        images, given, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images = pixels.checked(images, self._ranges)
        if not self._ranges and isinstance(images, tf.Tensor):
            self._largest_pixel.update_state(pixels.extremes(images)[1])
        given, teaching = self._teaching(images, given)
        step = self.optimizer.iterations
        soft_weight = self._soft_weight.at(step)
        with tf.GradientTape() as tape:
            logits, *features = _as_list(self._student_extractor(images, training=True))
            logits = _checked_logits(logits)
            for teacher in self.teachers:
                # A model without a graph has its weights only now.
                _check_apart(teacher, self.student)
            labels = targets.as_labels(given, logits.shape[-1], self._head)
            known = tf.cast(labels.indices >= 0, tf.float32)
            true = labels.rows if self._head == "sigmoid" else labels.indices
            terms = self._soft_terms(true, teaching, (logits, features), step)
            soft = tf.add_n(list(terms.values()))
            hard_loss = weight_classes(HARD_LOSSES[self._head], self._class_weights)
            hard = known * hard_loss(labels.hard, logits, self._label_smoothing)
            mixed = soft_weight * soft + (1.0 - soft_weight) * hard
            loss = _mean(mixed, sample_weight)
            loss += tf.add_n([tf.zeros([]), *_float32(self.student.losses)])
            # Gradients are summed over replicas, so that each brings its share.
            share = loss / tf.distribute.get_strategy().num_replicas_in_sync
        self.optimizer.minimize(share, self.trainable_variables, tape=tape)
        count = tf.cast(tf.shape(images)[0], tf.float32)
        self._record("loss", loss, count)
        self._record("soft_loss", _mean(soft, sample_weight), count)
        labelled = known if sample_weight is None else known * _flat(sample_weight)
        self._record("hard_loss", hard, labelled)
        for name, term in terms.items() if len(terms) > 1 else ():
            self._record(f"{name}_loss", _mean(term, sample_weight), count)
        classes, rows, *shown = _labelled(
            labels.indices, labels.rows, logits, sample_weight
        )
        true = rows if self._head == "sigmoid" else classes
        self.compiled_metrics.update_state(true, *shown)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the student on labels alone: "loss" is the hard loss.

        Images whose label is missing are left out.
        """
        images, given, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        given, _ = targets.split_targets(given)
        if given is None:
            raise ValueError("an evaluation needs labels. Received: images alone")
        images = pixels.checked(images, self._ranges)
        logits = self.student(images, training=False)
        labels = targets.as_labels(given, logits.shape[-1], self._head)
        classes, rows, logits, sample_weight = _labelled(
            labels.indices, labels.rows, logits, sample_weight
        )
        hard = HARD_LOSSES[self._head](classes if rows is None else rows, logits)
        count = tf.cast(tf.size(classes), tf.float32)
        self._record("loss", _mean(hard, sample_weight), count)
        true = rows if self._head == "sigmoid" else classes
        self.compiled_metrics.update_state(true, logits, sample_weight)
        only_training = set(self._loss_means) - {"loss"}
        return {m.name: m.result() for m in self.metrics if m.name not in only_training}

    def save(self, filepath: Any, **options: Any) -> None:
        """Saves the student; options are those of `keras.Model.save`."""
        self.student.save(filepath, **options)

    def get_config(self) -> dict[str, Any]:
        """The models' architectures and the losses, without weights, as in Keras.

        Raises:
            ValueError: If a loss is a function that is not registered by a name.
        """
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": [keras.saving.serialize_keras_object(t) for t in self.teachers],
            "losses": [loss.get_config() for loss in self.soft_losses],
            "head": self._head,
            "input_range": self._input_range and dataclasses.asdict(self._input_range),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Distiller:
        """Makes a Distiller of what `get_config` gave.

        A config has no weights: student and teachers start from new ones, and `fit`
        refuses until the teachers' weights are set (`teachers[0].set_weights` or
        `load_weights`).
        """
        student, *teachers = (
            keras.saving.deserialize_keras_object(model, custom_objects)
            for model in (config["student"], *config["teacher"])
        )
        losses = [SoftLoss.from_config(loss) for loss in config["losses"]]
        with warnings.catch_warnings():  # Warned of when the first one was made.
            warnings.simplefilter("ignore", UserWarning)
            made = cls(
                student,
                teachers or None,
                losses,
                name=config["name"],
                head=config.get("head"),
                input_range=_range_of_config(config.get("input_range")),
            )
        made._remember_teachers()
        return made

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`; None before it was called."""
        config = super().get_compile_config()
        if config is None:
            return None
        unused = ("loss", "loss_weights")
        config = {key: value for key, value in config.items() if key not in unused}
        config |= {
            "temperature": self._temperature.config,
            "soft_weight": self._soft_weight.config,
            "steps": self._temperature.steps,
            "label_smoothing": self._label_smoothing,
            "class_weights": self._class_weights,
        }
        # Keras leaves out of an optimizer's config what weight decay exempts.
        exempt = getattr(self.optimizer, "_exclude_from_weight_decay_names", None)
        return config | {"no_weight_decay": list(exempt or ())}

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compiles with what `get_compile_config` gave."""
        exempt = config.get("no_weight_decay")
        config = {key: config[key] for key in config if key != "no_weight_decay"}
        self.compile(**keras.saving.deserialize_keras_object(config))
        if exempt:
            self.optimizer.exclude_from_weight_decay(var_names=exempt)
        if self.built and hasattr(self.optimizer, "build"):
            self.optimizer.build(self.trainable_variables)

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _remember_teachers(self) -> None:
        self._initial = [_digest(teacher) for teacher in self.teachers]

    def _check_teachers_are_trained(self) -> None:
        for teacher, initial in zip(self.teachers, self._initial, strict=False):
            if initial and _digest(teacher) == initial:
                raise ValueError(
                    f"teacher {teacher.name!r} still has the random weights that "
                    "from_config gave it, and would teach noise; set its weights first "
                    "(distiller.teachers[0].set_weights or load_weights)"
                )

    def _record(self, name: str, mean: Any, weight: Any) -> None:
        # Weighted by its size, so that a smaller last batch counts for less.
        self._loss_means[name].update_state(mean, weight)

    def _teaching(self, images: Any, given: Any) -> tuple[Any, tuple[Any, list]]:
        """Labels, -1 where there are none, and the teacher's `(logits, features)`."""
        labels, stored = targets.split_targets(given)
        if stored is not None:
            if self._teacher_extractor is None:
                return labels, (_checked_logits(stored), [])
            raise ValueError(
                "losses of features need the teacher in the loop. Received: stored "
                "logits; give labels alone, so that the teacher is asked."
            )
        if not self.teachers:
            raise ValueError(
                "a Distiller without a teacher needs targets (labels, teacher_logits). "
                "Received: labels only; give it a teacher or stored logits."
            )
        if labels is None:
            if set(self._soft_weight.values) != {1.0}:
                raise ValueError(
                    "images without labels can be learned from with soft_weight=1 "
                    f"only. Received: soft_weight={self._soft_weight.values}"
                )
            labels = tf.fill([tf.shape(images)[0]], -1)
            if self._head == "sigmoid":
                labels = tf.repeat(labels[:, tf.newaxis], self._classes or 1, axis=1)
        if self._teacher_extractor is not None:
            logits, *features = self._teacher_extractor(images, training=False)
            logits, features = tf.nest.map_structure(
                tf.stop_gradient, (_checked_logits(logits), features)
            )
            return labels, (logits, features)
        outputs = [
            _checked_logits(_as_list(model(images, training=False))[0])
            for model in self.teachers
        ]
        mean = tf.add_n(outputs) / len(outputs)
        return labels, (tf.stop_gradient(mean), [])

    def _soft_terms(
        self, labels: Any, teaching: Any, student: Any, step: Any
    ) -> dict[str, Any]:
        """Each soft loss by its name, times its weight, per example."""
        (teacher_logits, teacher_maps), (logits, maps) = teaching, student
        temperature = self._temperature.at(step)
        of_features = zip(self.feature_losses, self._feature_slices, strict=True)
        terms = {}
        for loss in self.soft_losses:
            if loss.of_features:
                measure, part = next(of_features)
                value = measure(teacher_maps[part], maps[part])
            else:
                value = loss.of_logits(
                    labels, teacher_logits, logits, temperature, self._head
                )
            terms[loss.name] = loss.weight * value
        return terms


def _range_of_config(config: Mapping[str, Any] | None) -> PixelRange | None:
    if config is None:
        return None
    numbers = {key: tuple(config[key]) for key in ("scale", "offset")}
    return PixelRange(config["name"], **numbers, reverse=config["reverse"])


def _check_model(model: Any, role: str) -> None:
    if isinstance(model, keras.Model):
        if is_graph_model(model):
            select_output(model, None)  # Says which there are, if several.
            check_repeatable(model)
        return
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            f"{role} must be a keras.Model. Received: the path {str(model)!r}; load it "
            f"first: kdprune.load_model({str(model)!r})"
        )
    kind = f"{type(model).__module__}.{type(model).__name__}"
    hint = ""
    if kind.startswith("keras."):
        hint = ", of Keras 3; save it as .keras and load that by kdprune.load_model"
    raise ValueError(
        f"{role} must be a tf_keras (Keras 2) model. Received: {kind}{hint}"
    )


def _classes(model: keras.Model) -> int | None:
    """The number of outputs; None if it is not known yet."""
    shape = getattr(model, "output_shape", None)
    return shape[-1] if isinstance(shape, tuple) and len(shape) > 1 else None


def _warn_if_smaller(teacher: keras.Model, student: keras.Model) -> None:
    if not (teacher.built and student.built):
        return
    sizes = count_parameters(teacher), count_parameters(student)
    if sizes[0] < sizes[1]:
        warnings.warn(
            f"the teacher {teacher.name!r} has {sizes[0]:,} parameters, fewer than the "
            f"{sizes[1]:,} of the student {student.name!r}: are the two exchanged? "
            "Distiller(student, teacher)",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_bytes(models: Sequence[keras.Model]) -> None:
    scales = keras.layers.Rescaling, keras.layers.Normalization
    layers = [layer for model in models for layer in _parts(model).values()]
    if any(isinstance(layer, scales) for layer in layers):
        return
    warnings.warn(
        "images are bytes, which these models get as numbers from 0 to 255. If they "
        "take pixels in [0, 1], as those of kdprune do, give "
        "kdprune.data.to_float(images); if not, Distiller(..., input_range=(0, 255))",
        UserWarning,
        stacklevel=3,
    )


def _digest(model: keras.Model) -> str:
    """Tells a model's weights from others; empty if it has none yet."""
    if not model.built or not model.weights:
        return ""
    content = hashlib.sha256()
    for value in model.get_weights():
        content.update(np.ascontiguousarray(value).tobytes())
    return content.hexdigest()


def _check_pair(teacher: keras.Model, student: keras.Model) -> None:
    # A subclassed model has no shape before its first call; the loss checks then.
    for what, key in (("classes", "output_shape"), ("images", "input_shape")):
        shapes: list[Any] = [getattr(model, key, None) for model in (teacher, student)]
        if any(not isinstance(shape, tuple) for shape in shapes):
            continue
        cut = slice(-1, None) if what == "classes" else slice(1, None)
        first, second = (", ".join(map(str, shape[cut])) for shape in shapes)
        if first != second:
            raise ValueError(
                f"teacher and student must have the same {what}. Received: a teacher "
                f"of {first} and a student of {second}; train a teacher on this data."
            )
    _check_apart(teacher, student)


def _check_apart(teacher: keras.Model, student: keras.Model) -> None:
    """Refuses weights that both have, and layers whose weights are yet to come."""
    parts, weights = _parts(teacher), _weights(teacher)
    shared = [
        f"the layer {part.name!r}"
        for key, part in _parts(student).items()
        if key in parts and not part.built
    ]
    shared += [repr(w.name) for key, w in _weights(student).items() if key in weights]
    if shared:
        raise ValueError(
            "teacher and student must not share weights, or the teacher changes as it "
            f"teaches. Received: both have {shared[0]}; copy the teacher "
            "(keras.models.clone_model, set_weights)."
        )


def _parts(model: keras.Model) -> dict[int, Any]:
    """A model and the layers in it, by identity."""
    parts = (model, *model.submodules)
    return {id(part): part for part in parts if isinstance(part, keras.layers.Layer)}


def _weights(model: keras.Model) -> dict[int, Any]:
    """All variables of a model, by identity; a model that is not built has none."""
    return {
        id(variable): variable
        for part in _parts(model).values()
        if part.built or not isinstance(part, keras.Model)
        for variable in part.variables
    }


def _check_logits_out(model: keras.Model, head: str | None) -> str:
    """Refuses probabilities; returns what makes them of the logits."""
    found = head_of(model, f"model {model.name!r}", head)
    ends_in = final_activation(model)[0]
    if ends_in == "softmax":
        raise ValueError(_without_softmax(f"model {model.name!r}"))
    if ends_in:
        raise ValueError(
            f"expected logits. Received: model {model.name!r} giving probabilities by "
            "sigmoid, which would be taken twice; take it off by "
            "kdprune.intake.split_head(model)[0]"
        )
    return found


def _without_softmax(who: str) -> str:
    return (
        f"expected logits. Received: {who} giving probabilities, whose softmax would "
        "be taken twice; build the model with activation=None in its last layer."
    )


def _layers_of(loss: SoftLoss, teacher: keras.Model, student: keras.Model) -> Any:
    """Names of the teacher's and of the student's layers that a loss compares."""
    given = loss.teacher_layers, loss.student_layers
    return match_feature_layers(teacher, student) if None in given else given


def _as_list(outputs: Any) -> list:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _checked_logits(values: Any) -> Any:
    """In float32, checked for what no graph shows: that they are no probabilities."""
    values = tf.cast(values, tf.float32)
    ones = tf.abs(tf.reduce_sum(values, axis=1) - 1.0) < 1e-2
    probabilities = tf.reduce_all(ones) & tf.reduce_all(values >= 0.0)
    # The logits of a single example may add up to 1 by chance.
    probabilities &= tf.shape(values)[0] > 1
    check = tf.debugging.Assert(~probabilities, [targets.PROBABILITIES])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(values)


def _labelled(labels: Any, *others: Any) -> list[Any]:
    """These, of the examples whose label is not missing: metrics see no others."""
    known = tf.where(labels >= 0)[:, 0]
    return [None if v is None else tf.gather(v, known) for v in (labels, *others)]


def _flat(values: Any) -> Any:
    return tf.reshape(values, [-1])


def _mean(values: Any, weight: Any) -> Any:
    """The mean over the batch; zero of an empty one, as a replica's last may be."""
    if weight is not None:
        values *= tf.cast(_flat(weight), values.dtype)
    count = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), count)


def _float32(values: Any) -> list:
    return [tf.cast(value, tf.float32) for value in values]
