"""The `Distiller`: a student that learns from labels and from a teacher."""

import tensorflow as tf
import tf_keras as keras

from kdprune.distill.losses import distillation_loss
from kdprune.training.losses import cross_entropy


class Distiller(keras.Model):
    """Trains a student on hard labels and on a teacher's logits.

    Compiled, fitted, evaluated and used like the student alone: predictions,
    weights, checkpoints and saved files are the student's. The teacher runs in
    inference mode (its BatchNorm statistics stay) and receives no gradient.

    Targets in `fit` are class indices `(batch,)`, which need a teacher here, or a
    pair of them and stored teacher logits `(batch, classes)`, which do not.

    Args:
        student: The `keras.Model` to train; logits out.
        teacher: A trained `keras.Model`; logits out. None if every batch brings
            the teacher's logits.

    Raises:
        ValueError: If teacher and student differ in their number of classes.

    Example:
        >>> distiller = Distiller(student, teacher)
        >>> distiller.compile("adam", temperature=4.0, soft_weight=0.9)
        >>> distiller.fit(images, labels, epochs=10)
        >>> student.save("student.keras")
    """

    def __init__(self, student, teacher=None, name="distiller"):
        super().__init__(name=name)
        if teacher is not None:
            _check_classes(teacher, student)
        self.student = student
        self._hide(teacher)
        if student.built:
            self.built = True

    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def _hide(self, teacher):
        """Keeps from Keras what must not be trained, counted, checkpointed, saved."""
        self.teacher = teacher
        names = ("loss", "soft_loss", "hard_loss")
        self._loss_means = {name: keras.metrics.Mean(name) for name in names}

    def compile(
        self,
        optimizer="rmsprop",
        *,
        temperature=4.0,
        soft_weight=0.9,
        label_smoothing=0.0,
        metrics=("accuracy",),
        **options,
    ):
        """Configures the losses: `soft_weight * soft + (1 - soft_weight) * hard`.

        Args:
            optimizer: As in `keras.Model.compile`.
            temperature: T > 0 of `distillation_loss`.
            soft_weight: Share of the soft loss, in [0, 1].
            label_smoothing: Of the hard loss, in [0, 1).
            metrics: As in `keras.Model.compile`, of labels and logits.
            **options: Passed to `keras.Model.compile`.
        """
        if "loss" in options:
            raise ValueError(
                "a Distiller has its own losses, set by temperature and soft_weight. "
                f"Received: loss={options['loss']!r}; remove it."
            )
        if not 0.0 <= soft_weight <= 1.0:
            raise ValueError(f"soft_weight must be in [0, 1]. Received: {soft_weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0. Received: {temperature}")
        super().compile(optimizer=optimizer, metrics=list(metrics), **options)
        self._temperature = temperature
        self._soft_weight = soft_weight
        self._label_smoothing = label_smoothing

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    @property
    def metrics(self):
        return [*self._loss_means.values(), *super().metrics]

    def train_step(self, data):
        images, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels, teacher_logits = self._targets(images, targets)
        with tf.GradientTape() as tape:
            logits = self.student(images, training=True)
            soft = distillation_loss(teacher_logits, logits, self._temperature)
            hard = cross_entropy(labels, logits, self._label_smoothing)
            mixed = self._soft_weight * soft + (1.0 - self._soft_weight) * hard
            loss = _mean(mixed, sample_weight)
            loss += tf.add_n([tf.zeros([]), *_float32(self.student.losses)])
            # Gradients are summed over replicas, so that each brings its share.
            share = loss / tf.distribute.get_strategy().num_replicas_in_sync
        self.optimizer.minimize(share, self.student.trainable_variables, tape=tape)
        self._record("loss", loss, images)
        self._record("soft_loss", _mean(soft, sample_weight), images)
        self._record("hard_loss", _mean(hard, sample_weight), images)
        self.compiled_metrics.update_state(labels, logits, sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        """Evaluates the student on labels alone: "loss" is the hard loss."""
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(labels, tuple):
            labels, _ = labels
        logits = self.student(images, training=False)
        hard = cross_entropy(labels, logits)
        self._record("loss", _mean(hard, sample_weight), images)
        self.compiled_metrics.update_state(labels, logits, sample_weight)
        skipped = ("soft_loss", "hard_loss")
        return {m.name: m.result() for m in self.metrics if m.name not in skipped}

    def save(self, filepath, **options):
        """Saves the student."""
        self.student.save(filepath, **options)

    def _record(self, name, mean, images):
        # Weighted by its size, so that a smaller last batch counts for less.
        self._loss_means[name].update_state(mean, tf.shape(images)[0])

    def _targets(self, images, targets):
        if isinstance(targets, tuple):
            return targets
        if self.teacher is None:
            raise ValueError(
                "a Distiller without a teacher needs targets (labels, teacher_logits). "
                "Received: labels only; give it a teacher or stored logits."
            )
        return targets, tf.stop_gradient(self.teacher(images, training=False))


def _check_classes(teacher, student):
    # A subclassed model has no shape before its first call; the loss checks then.
    shapes = [getattr(model, "output_shape", None) for model in (teacher, student)]
    if None not in shapes and shapes[0][-1] != shapes[1][-1]:
        raise ValueError(
            f"teacher and student must have the same classes. Received: a teacher of "
            f"{shapes[0][-1]} and a student of {shapes[1][-1]}; train a teacher on "
            "this data."
        )


def _mean(values, weight):
    if weight is None:
        return tf.reduce_mean(values)
    return tf.reduce_mean(values * tf.cast(tf.reshape(weight, [-1]), values.dtype))


def _float32(values):
    return [tf.cast(value, tf.float32) for value in values]
