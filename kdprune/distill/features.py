"""Losses between the feature maps of a teacher and a student.

The formulas are functions of one pair of tensors. The layers in `FEATURE_LOSSES`
apply them to lists of such maps, and own what has to be learned for that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune.distill.losses import check_weights

# `(batch, height, width, channels)`, and those of all maps of a model.
Shape = tuple[Any, ...]
Shapes = Sequence[Any]

# Vectors shorter than this have no direction. Their gradient is zero, where that
# of `x / |x|` would be infinite.
_SHORTEST = 1e-12


def hint_loss(teacher: Any, student: Any) -> tf.Tensor:
    """Measures the mean squared difference of two feature maps.

    If the maps differ in height or width, the bigger is averaged over areas down
    to the smaller.

    Reference: Romero et al., 2015 (FitNets), https://arxiv.org/abs/1412.6550,
    section 2.2, equation 3, whose sum and factor 1/2 are a mean here, so that the
    weight of the loss does not depend on the size of the map.

    Args:
        teacher: Features, shape `(batch, height, width, channels)`.
        student: Features of as many channels; see `HintLoss` for others.

    Returns:
        Loss per example, float32, shape `(batch,)`.

    Raises:
        ValueError: If these are no maps of one batch, or the channels differ.
    """
    teacher, student = _ranked(4, teacher, student)
    if teacher.shape[-1] != student.shape[-1]:
        raise ValueError(
            "hints need as many channels of the student as of the teacher: project "
            f"them, as HintLoss does. Received: teacher {teacher.shape}, student "
            f"{student.shape}"
        )
    teacher, student = _pooled_alike(teacher, student)
    return tf.reduce_mean(tf.square(teacher - student), axis=[1, 2, 3])


def attention_loss(teacher: Any, student: Any) -> tf.Tensor:
    """Measures how differently two feature maps spread over the image.

    The attention map `Q` is the mean over channels of the squared features, as a
    vector over positions; the loss is `sum((Q_t / |Q_t| - Q_s / |Q_s|)**2)`, in
    [0, 2]. Channels may differ. If height or width differ, the bigger attention map
    is averaged over areas down to the smaller. A map of zeros attends to nothing:
    its normalized attention is zero.

    Reference: Zagoruyko & Komodakis, 2017, https://arxiv.org/abs/1612.03928,
    section 3.1, equation 2, with the squared distance of the authors' code.

    Args:
        teacher: Features, shape `(batch, height, width, channels)`.
        student: Features, shape `(batch, height, width, channels)`.

    Returns:
        Loss per example, float32, shape `(batch,)`.

    Raises:
        ValueError: If these are no maps of one batch.
    """
    maps = (
        tf.reduce_mean(tf.square(features), axis=-1, keepdims=True)
        for features in _ranked(4, teacher, student)
    )
    teacher, student = (
        _unit(tf.reshape(pooled, [-1, pooled.shape[1] * pooled.shape[2]]))
        for pooled in _pooled_alike(*maps)
    )
    return tf.reduce_sum(tf.square(teacher - student), axis=-1)


def relational_loss(
    teacher: Any,
    student: Any,
    distance_weight: float = 1.0,
    angle_weight: float = 2.0,
) -> tf.Tensor:
    """Measures how differently two networks arrange the examples of a batch.

    Compares, by the Huber loss (delta 1), the distance of every two examples, in
    units of the batch's mean distance, and the cosine of the angle at the second of
    every three; each is averaged over all pairs or triples of distinct examples.
    Neither depends on the scale, the rotation or the width of the embeddings. A
    batch of one has no pair and one of two no triple: these parts are zero.

    Time and memory grow with the cube of the batch; a few hundred examples are
    the most that is practical.

    Reference: Park et al., 2019 (RKD), https://arxiv.org/abs/1904.05068, sections
    3.2.1 and 3.2.2; weights 1 : 2 as in its section 4.

    Args:
        teacher: Embeddings, shape `(batch, width)`.
        student: Embeddings, shape `(batch, other width)`.
        distance_weight: Weight of the distances, at least 0.
        angle_weight: Weight of the angles, at least 0.

    Returns:
        The batch's loss once for each example, float32, shape `(batch,)`.

    Raises:
        ValueError: If a weight is negative or not finite, both are 0, or these are no
            embeddings of one batch.
    """
    check_weights(distance_weight=distance_weight, angle_weight=angle_weight)
    teacher, student = _ranked(2, teacher, student)
    teacher_distances, teacher_cosines = _relations(teacher)
    student_distances, student_cosines = _relations(student)
    count = tf.shape(student)[0]
    size = tf.cast(count, tf.float32)
    # An example's distance to itself is zero in both, and so is the cosine where
    # the vertex is an end. That of an end and itself is 1, or 0 if both coincide
    # with the vertex.
    two_ends = 1.0 - tf.eye(count)
    distance = tf.reduce_sum(_huber(teacher_distances - student_distances))
    angle = tf.reduce_sum(two_ends * _huber(teacher_cosines - student_cosines))
    pairs = size * (size - 1.0)
    loss = distance_weight * tf.math.divide_no_nan(distance, pairs)
    loss += angle_weight * tf.math.divide_no_nan(angle, pairs * (size - 2.0))
    return tf.fill([count], loss)


def info_nce_loss(teacher: Any, student: Any, temperature: float = 0.1) -> tf.Tensor:
    """Measures how well the teacher's embedding of an image is recognized.

    The cross-entropy of picking, by cosine similarity to the student's embedding of
    an image, the teacher's embedding of that image out of those of the batch. A
    batch of one leaves no choice: its loss is zero.

    Reference: van den Oord et al., 2018 (InfoNCE), https://arxiv.org/abs/1807.03748,
    section 2.3; between teacher and student as in Tian et al., 2020 (CRD),
    https://arxiv.org/abs/1910.10699, section 3.1, whose negatives come from a memory
    of the data set instead of the batch.

    Args:
        teacher: Embeddings, shape `(batch, width)`.
        student: Embeddings, same shape.
        temperature: Divides the cosines; finite and above 0.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`; `log(batch)` by chance.

    Raises:
        ValueError: If `temperature` is not positive, or these are no embeddings of one
            shape.
    """
    _check_temperature(temperature)
    teacher, student = _ranked(2, teacher, student)
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "embeddings of teacher and student must have one shape (batch, width). "
            f"Received: teacher {teacher.shape}, student {student.shape}"
        )
    teacher, student = _unit(teacher), _unit(student)
    scores = tf.matmul(student, teacher, transpose_b=True) / temperature
    return -tf.linalg.diag_part(tf.nn.log_softmax(scores))


class FeatureLoss(keras.layers.Layer):
    """A loss between lists of feature maps; the base of those in `FEATURE_LOSSES`.

    Called with a teacher's and a student's maps, it gives the mean loss over the
    pairs, per example, float32, shape `(batch,)`; in float32 whatever the features'
    type. No gradient goes to the teacher.

    Some kinds learn a mapping between the two networks. These weights exist from
    the start, as the layer's own: to be trained with the student's and dropped
    with the layer.

    Args:
        teacher_shapes: For each layer, `(batch, height, width, channels)`; only
            `batch` may be None.
        student_shapes: As many, in the same order.

    Raises:
        ValueError: If the numbers of layers differ or are zero, or if a shape isn't
            that of a feature map of known size.

    Example:
        >>> teacher_layers, student_layers = match_feature_layers(teacher, student)
        >>> teacher_maps = feature_extractor(teacher, teacher_layers)
        >>> student_maps = feature_extractor(student, student_layers)
        >>> loss = HintLoss(
        ...     [output.shape for output in teacher_maps.outputs[1:]],
        ...     [output.shape for output in student_maps.outputs[1:]],
        ... )
        >>> loss(teacher_maps(images)[1:], student_maps(images)[1:]).shape
        TensorShape([128])
    """

    # Relations between examples are read off the last features only.
    last_only = False

    @staticmethod
    def check() -> None:
        """Raises `ValueError` for arguments out of range, before anything is made."""

    def __init__(
        self, teacher_shapes: Shapes, student_shapes: Shapes, name: str | None = None
    ) -> None:
        super().__init__(name=name, dtype="float32")
        pairs = _checked(teacher_shapes, student_shapes)
        self._used = slice(-1, None) if self.last_only else slice(None)
        self.prepare(pairs[self._used])

    def call(self, teacher_features: Any, student_features: Any) -> tf.Tensor:
        pairs = list(zip(teacher_features, student_features, strict=True))
        losses = [
            self.pair_loss(
                index, tf.stop_gradient(_float32(teacher)), _float32(student)
            )
            for index, (teacher, student) in enumerate(pairs[self._used])
        ]
        return tf.add_n(losses) / len(losses)

    def prepare(self, pairs: list[tuple[Shape, Shape]]) -> None:
        """Checks the pairs of shapes, and makes the layers they need, if any."""

    def pair_loss(self, index: int, teacher: Any, student: Any) -> Any:
        """The loss of a pair of maps, `(batch,)`; both come in float32."""
        raise NotImplementedError


class HintLoss(FeatureLoss):
    """`hint_loss` of every pair of maps.

    Where a student's map has other channels than the teacher's, a learned 1x1
    convolution projects it onto them first (FitNets, section 2.2; their regressor
    has bigger kernels).
    """

    def prepare(self, pairs: list[tuple[Shape, Shape]]) -> None:
        self.projectors = [
            _projector(teacher, student, f"projector_{index}")
            for index, (teacher, student) in enumerate(pairs)
        ]

    def pair_loss(self, index: int, teacher: Any, student: Any) -> Any:
        return hint_loss(teacher, self.projectors[index](_float32(student)))


class AttentionLoss(FeatureLoss):
    """`attention_loss` of every pair of maps; nothing is learned.

    Raises:
        ValueError: If a map has a single position, where there is nothing to
            attend to, besides the errors of `FeatureLoss`.
    """

    def prepare(self, pairs: list[tuple[Shape, Shape]]) -> None:
        for shape in (shape for pair in pairs for shape in pair):
            if shape[1] * shape[2] == 1:
                raise ValueError(
                    "attention needs feature maps of more than one position. "
                    f"Received: shape {shape}; take an earlier layer."
                )

    def pair_loss(self, index: int, teacher: Any, student: Any) -> Any:
        return attention_loss(teacher, student)


class RelationalLoss(FeatureLoss):
    """`relational_loss` of the last pair of maps, averaged over positions.

    Nothing is learned. Takes the function's weights besides the shapes.

    Raises:
        ValueError: As `relational_loss`, besides the errors of `FeatureLoss`.
    """

    last_only = True

    def __init__(
        self,
        teacher_shapes: Shapes,
        student_shapes: Shapes,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        name: str | None = None,
    ) -> None:
        self.check(distance_weight, angle_weight)
        super().__init__(teacher_shapes, student_shapes, name)
        self._weights = distance_weight, angle_weight

    @staticmethod
    def check(distance_weight: float = 1.0, angle_weight: float = 2.0) -> None:
        check_weights(distance_weight=distance_weight, angle_weight=angle_weight)

    def pair_loss(self, index: int, teacher: Any, student: Any) -> Any:
        teacher, student = _embedding(teacher), _embedding(student)
        return relational_loss(teacher, student, *self._weights)


class ContrastiveLoss(FeatureLoss):
    """`info_nce_loss` of the last pair of maps, averaged over positions.

    A learned linear head for each network maps its features to 128 values
    (CRD, section 4). Takes the function's temperature besides the shapes.

    Raises:
        ValueError: As `info_nce_loss`, besides the errors of `FeatureLoss`.
    """

    last_only = True

    def __init__(
        self,
        teacher_shapes: Shapes,
        student_shapes: Shapes,
        temperature: float = 0.1,
        name: str | None = None,
    ) -> None:
        self.check(temperature)
        super().__init__(teacher_shapes, student_shapes, name)
        self._temperature = temperature

    @staticmethod
    def check(temperature: float = 0.1) -> None:
        _check_temperature(temperature)

    def prepare(self, pairs: list[tuple[Shape, Shape]]) -> None:
        ((teacher, student),) = pairs
        self.teacher_head = _head(teacher, "teacher_head")
        self.student_head = _head(student, "student_head")

    def pair_loss(self, index: int, teacher: Any, student: Any) -> Any:
        teacher = self.teacher_head(_embedding(teacher))
        student = self.student_head(_embedding(student))
        return info_nce_loss(teacher, student, self._temperature)


FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
    "hint": HintLoss,
    "attention": AttentionLoss,
    "relational": RelationalLoss,
    "contrastive": ContrastiveLoss,
}


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be a finite number above 0. Received: {temperature}"
        )


def _checked(
    teacher_shapes: Shapes, student_shapes: Shapes
) -> list[tuple[Shape, Shape]]:
    """Pairs of shapes as tuples."""
    teachers, students = (
        [tuple(shape) for shape in shapes]
        for shapes in (teacher_shapes, student_shapes)
    )
    if len(teachers) != len(students) or not teachers:
        raise ValueError(
            "a feature loss needs as many layers of the student as of the teacher, at "
            f"least one. Received: {len(teachers)} of the teacher, {len(students)} of "
            "the student"
        )
    for shape in (*teachers, *students):
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                "a feature loss needs maps of known size (batch, height, width, "
                f"channels). Received: shape {shape}; build the model for one image "
                "size and take layers out of feature_layers(model)."
            )
    return list(zip(teachers, students, strict=True))


def _projector(
    teacher_shape: Shape, student_shape: Shape, name: str
) -> keras.layers.Layer:
    if teacher_shape[-1] == student_shape[-1]:
        return keras.layers.Activation("linear", name=name, dtype="float32")
    layer = keras.layers.Conv2D(teacher_shape[-1], 1, name=name, dtype="float32")
    return _built(layer, student_shape)


def _head(shape: Shape, name: str) -> keras.layers.Layer:
    return _built(keras.layers.Dense(128, name=name, dtype="float32"), shape)


def _built(layer: keras.layers.Layer, shape: Shape) -> keras.layers.Layer:
    with tf.name_scope(layer.name):
        layer.build(shape)
    return layer


def _ranked(rank: int, *features: Any) -> list[Any]:
    """Features in float32, checked to be maps (rank 4) or embeddings (rank 2)."""
    values = [_float32(value) for value in features]
    shapes = [value.shape for value in values]
    batches = {shape[0] for shape in shapes if shape.rank} - {None}
    if any(shape.rank not in (None, rank) for shape in shapes) or len(batches) > 1:
        axes = "height, width, channels" if rank == 4 else "width"
        raise ValueError(
            f"teacher and student must give features (batch, {axes}) of one batch. "
            f"Received: teacher {shapes[0]}, student {shapes[1]}"
        )
    return values


def _float32(features: Any) -> Any:
    return tf.cast(features, tf.float32)


def _embedding(features: Any) -> Any:
    return tf.reduce_mean(_float32(features), axis=[1, 2])


def _pooled_alike(*maps: Any) -> list[Any]:
    """Averages maps over areas down to their least height and width."""
    height = min(features.shape[1] for features in maps)
    width = min(features.shape[2] for features in maps)
    return [_pooled(features, height, width) for features in maps]


def _pooled(features: Any, height: int, width: int) -> Any:
    # `tf.image.resize(method="area")` has no gradient.
    if features.shape[1] != height:
        rows = _area_weights(features.shape[1], height)
        features = tf.einsum("oh,bhwc->bowc", rows, features)
    if features.shape[2] != width:
        columns = _area_weights(features.shape[2], width)
        features = tf.einsum("ow,bhwc->bhoc", columns, features)
    return features


@functools.cache
def _area_weights(size: int, target: int) -> np.ndarray:
    """The share that each of `size` cells has in each of `target` <= `size`."""
    edges = np.arange(target + 1)[:, None] * size / target
    cells = np.arange(size)
    overlap = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    return (overlap.clip(0) * target / size).astype("float32")


def _relations(embeddings: Any) -> tuple[Any, Any]:
    """Relative distances (i, j) and cosines (vertex, i, j), `n**2` and `n**3`."""
    differences = embeddings[:, None] - embeddings[None]
    lengths = _length(differences)
    size = tf.cast(tf.shape(embeddings)[0], tf.float32)
    mean = tf.math.divide_no_nan(tf.reduce_sum(lengths), size * (size - 1.0))
    directions = _unit(differences)
    cosines = tf.matmul(directions, directions, transpose_b=True)
    return tf.math.divide_no_nan(lengths, mean), cosines


def _huber(error: Any) -> Any:
    size = tf.abs(error)
    return tf.where(size <= 1.0, 0.5 * tf.square(error), size - 0.5)


def _unit(vectors: Any) -> Any:
    """Vectors of length 1, or 0 where they are too short to have a direction."""
    return tf.math.divide_no_nan(vectors, _length(vectors)[..., None])


def _length(vectors: Any) -> Any:
    squares = tf.reduce_sum(tf.square(vectors), axis=-1)
    long = squares > _SHORTEST**2
    # The inner choice keeps an infinite slope at 0 out of the gradient.
    return tf.where(long, tf.sqrt(tf.where(long, squares, 1.0)), 0.0)
