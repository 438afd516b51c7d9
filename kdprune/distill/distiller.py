"""The Distiller: a Keras model that trains a student on labels and on teachers."""

import tensorflow as tf
import tf_keras as keras

from kdprune._graph import ends_in_softmax
from kdprune.distill.features import FEATURE_LOSSES
from kdprune.distill.objective import Schedule, as_soft_losses
from kdprune.distill.taps import match_taps, tap
from kdprune.training.losses import cross_entropy

_PROBABILITIES = "expected logits, got probabilities"


class Distiller(keras.Model):
    """Trains a student on hard labels and on a teacher.

    Compiled, fitted, evaluated and used like the student alone: predictions and
    saved files are the student's. Teachers run in inference mode (their BatchNorm
    statistics stay) and receive no gradient. What a feature loss learns beside the
    student is trained and checkpointed with it, and never saved.

    Targets in `fit` are class indices `(batch,)`, or None where there are no labels,
    which need a teacher here; or a pair of class indices and stored teacher logits
    `(batch, classes)`, which needs none. An index of -1 is a label that is missing:
    such an example teaches by the soft losses alone.

    Args:
        student: The `keras.Model` to train; logits out. Subclassed, or wrapped for
            pruning or quantization-aware training, as well.
        teacher: A trained `keras.Model`; logits out. Several, in a list, teach by
            the mean of their logits. None if every batch brings the logits.
        losses: What the student learns from the teacher: names, dicts or `SoftLoss`
            objects, each once; "kl" if None or empty. Losses of features need layer
            graphs and one teacher.

    Raises:
        ValueError: If teacher and student differ in classes or images, share
            weights or layers that are yet to be built, or give probabilities; if a
            loss is not valid, or needs a teacher or layers that are not there. What
            only the first batch shows of models without a graph is said in `fit`.

    Example:
        >>> distiller = Distiller(student, teacher)
        >>> distiller.compile("adam", temperature=4.0, soft_weight=0.9)
        >>> distiller.fit(images, labels, epochs=10)
        >>> student.save("student.keras")
    """

    def __init__(self, student, teacher=None, losses=None, name="distiller"):
        super().__init__(name=name)
        given = teacher if isinstance(teacher, list | tuple) else [teacher]
        teachers = [model for model in given if model is not None]
        for model in teachers:
            _check_pair(model, student)
        for model in (student, *teachers):
            _check_logits_out(model)
        self.student = student
        self.feature_losses = []
        self._hide(teachers, as_soft_losses(losses))
        if student.built:
            self.built = True

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _hide(self, teachers, losses):
        """Keeps from Keras what must not be trained, counted, checkpointed, saved."""
        self.teachers = teachers
        self.soft_losses = losses
        names = ["loss", "soft_loss", "hard_loss"]
        if len(losses) > 1:
            names += [f"{loss.name}_loss" for loss in losses]
        self._loss_means = {name: keras.metrics.Mean(name) for name in names}
        self._tapped_student, self._tapped_teacher = self.student, None
        self._feature_slices = []
        if any(loss.of_features for loss in losses):
            self._tap()

    def _tap(self):
        """Makes both models give the features that the losses compare."""
        if len(self.teachers) != 1:
            raise ValueError(
                "losses of features need one teacher in the loop, since only logits "
                f"are averaged or stored. Received: {len(self.teachers)} teachers"
            )
        (teacher,) = self.teachers
        layers = ([], [])
        for loss in self.soft_losses:
            if not loss.of_features:
                continue
            pairs = _layers_of(loss, teacher, self.student)
            start = len(layers[0])
            for tapped, names in zip(layers, pairs, strict=True):
                tapped.extend(names)
            self._feature_slices.append(slice(start, len(layers[0])))
        self._tapped_teacher = tap(teacher, layers[0])
        self._tapped_student = tap(self.student, layers[1])
        shapes = [
            [output.shape for output in model.outputs[1:]]
            for model in (self._tapped_teacher, self._tapped_student)
        ]
        of_features = [loss for loss in self.soft_losses if loss.of_features]
        for loss, part in zip(of_features, self._feature_slices, strict=True):
            given = {"name": loss.name, **loss.arguments}
            made = FEATURE_LOSSES[loss.name](shapes[0][part], shapes[1][part], **given)
            self.feature_losses.append(made)

    def compile(
        self,
        optimizer="rmsprop",
        *,
        temperature=4.0,
        soft_weight=0.9,
        steps=None,
        label_smoothing=0.0,
        metrics=("accuracy",),
        **options,
    ):
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
            metrics: As in `keras.Model.compile`, of labels and logits.
            **options: Passed to `keras.Model.compile`.

        Raises:
            ValueError: If a value is out of range.
        """
        if "loss" in options:
            raise ValueError(
                "a Distiller has its own losses, set by temperature and soft_weight. "
                f"Received: loss={options['loss']!r}; remove it."
            )
        self._temperature = Schedule(
            temperature, steps, name="temperature", closed=False
        )
        self._soft_weight = Schedule(soft_weight, steps, name="soft_weight", high=1.0)
        self._label_smoothing = label_smoothing
        super().compile(optimizer=optimizer, metrics=list(metrics), **options)

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    @property
    def metrics(self):
        return [*self._loss_means.values(), *super().metrics]

    def fit(self, *arguments, **options):
        """Trains the student; see `keras.Model.fit`."""
        try:
            return super().fit(*arguments, **options)
        except tf.errors.InvalidArgumentError as error:
            if _PROBABILITIES not in str(error):
                raise
            raise ValueError(_without_softmax("a model or the stored labels")) from None

    def train_step(self, data):
        images, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels, teaching = self._teaching(images, targets)
        known = tf.cast(labels >= 0, tf.float32)
        step = self.optimizer.iterations
        soft_weight = self._soft_weight.at(step)
        with tf.GradientTape() as tape:
            logits, *features = _as_list(self._tapped_student(images, training=True))
            logits = _checked_logits(logits)
            for teacher in self.teachers:
                # A model without a graph has its weights only now.
                _check_apart(teacher, self.student)
            terms = self._soft_terms(labels, teaching, (logits, features), step)
            soft = tf.add_n(list(terms.values()))
            hard = known * cross_entropy(
                tf.maximum(labels, 0), logits, self._label_smoothing
            )
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
        shown = _labelled(labels, logits, sample_weight)
        self.compiled_metrics.update_state(*shown)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        """Evaluates the student on labels alone: "loss" is the hard loss.

        Images whose label is missing are left out.
        """
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(labels, tuple):
            labels, _ = labels
        if labels is None:
            raise ValueError("an evaluation needs labels. Received: images alone")
        labels = _flat(tf.cast(labels, tf.int32))
        logits = self.student(images, training=False)
        labels, logits, sample_weight = _labelled(labels, logits, sample_weight)
        hard = cross_entropy(labels, logits)
        count = tf.cast(tf.size(labels), tf.float32)
        self._record("loss", _mean(hard, sample_weight), count)
        self.compiled_metrics.update_state(labels, logits, sample_weight)
        only_training = set(self._loss_means) - {"loss"}
        return {m.name: m.result() for m in self.metrics if m.name not in only_training}

    def save(self, filepath, **options):
        """Saves the student."""
        self.student.save(filepath, **options)

    def _record(self, name, mean, weight):
        # Weighted by its size, so that a smaller last batch counts for less.
        self._loss_means[name].update_state(mean, weight)

    def _teaching(self, images, targets):
        """Labels, -1 where there is none, and the teacher's `(logits, features)`."""
        if isinstance(targets, tuple):
            labels, logits = targets
            stored = _checked_logits(logits)
            if self._tapped_teacher is None:
                return _flat(tf.cast(labels, tf.int32)), (stored, [])
            raise ValueError(
                "losses of features need the teacher in the loop. Received: stored "
                "logits; give labels alone, so that the teacher is asked."
            )
        if not self.teachers:
            raise ValueError(
                "a Distiller without a teacher needs targets (labels, teacher_logits). "
                "Received: labels only; give it a teacher or stored logits."
            )
        if targets is None:
            if set(self._soft_weight.values) != {1.0}:
                raise ValueError(
                    "images without labels can be learned from with soft_weight=1 "
                    f"only. Received: soft_weight={self._soft_weight.values}"
                )
            targets = tf.fill([tf.shape(images)[0]], -1)
        labels = _flat(tf.cast(targets, tf.int32))
        if self._tapped_teacher is not None:
            logits, *features = self._tapped_teacher(images, training=False)
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

    def _soft_terms(self, labels, teaching, student, step):
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
                value = loss.of_logits(labels, teacher_logits, logits, temperature)
            terms[loss.name] = loss.weight * value
        return terms


def _check_pair(teacher, student):
    # A subclassed model has no shape before its first call; the loss checks then.
    for what, key in (("classes", "output_shape"), ("images", "input_shape")):
        shapes = [getattr(model, key, None) for model in (teacher, student)]
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


def _check_apart(teacher, student):
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


def _parts(model):
    """A model and the layers in it, by identity."""
    parts = (model, *model.submodules)
    return {id(part): part for part in parts if isinstance(part, keras.layers.Layer)}


def _weights(model):
    """All variables of a model, by identity; a model that is not built has none."""
    return {
        id(variable): variable
        for part in _parts(model).values()
        if part.built or not isinstance(part, keras.Model)
        for variable in part.variables
    }


def _check_logits_out(model):
    if ends_in_softmax(model):
        raise ValueError(_without_softmax(f"model {model.name!r}"))


def _without_softmax(who):
    return (
        f"expected logits. Received: {who} giving probabilities, whose softmax would "
        "be taken twice; build the model with activation=None in its last layer."
    )


def _layers_of(loss, teacher, student):
    """Names of the teacher's and of the student's layers that a loss compares."""
    given = loss.teacher_layers, loss.student_layers
    return match_taps(teacher, student) if None in given else given


def _as_list(outputs):
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _checked_logits(values):
    """In float32, checked for what no graph shows: that they are no probabilities."""
    values = tf.cast(values, tf.float32)
    ones = tf.abs(tf.reduce_sum(values, axis=1) - 1.0) < 1e-2
    probabilities = tf.reduce_all(ones) & tf.reduce_all(values >= 0.0)
    # The logits of a single example may add up to 1 by chance.
    probabilities &= tf.shape(values)[0] > 1
    check = tf.debugging.Assert(~probabilities, [_PROBABILITIES])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(values)


def _labelled(labels, logits, sample_weight):
    """These, of the examples whose label is not missing: metrics see no others."""
    rows = tf.where(labels >= 0)[:, 0]
    given = labels, logits, sample_weight
    return [None if values is None else tf.gather(values, rows) for values in given]


def _flat(values):
    return tf.reshape(values, [-1])


def _mean(values, weight):
    """The mean over the batch; zero of an empty one, as a replica's last may be."""
    if weight is not None:
        values *= tf.cast(_flat(weight), values.dtype)
    count = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), count)


def _float32(values):
    return [tf.cast(value, tf.float32) for value in values]
