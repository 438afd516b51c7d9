"""Distillation losses: pure functions of a teacher's and a student's logits.

Each takes the teacher first and gives one loss per example. They are computed in
float32 whatever type comes in, and stay finite, in value and gradient, however far
apart the logits are. None stops a gradient: that is up to whoever runs the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Softmax outputs and logits whose deviations from their mean are shorter than this
# (as a vector) count as constant: nothing correlates with a constant.
_SHORTEST = 1e-3


def distillation_loss(
    teacher_logits: Any, student_logits: Any, temperature: Any = 4.0
) -> tf.Tensor:
    """Measures how far the student's softened predictions are from the teacher's.

    Computes `T**2 * KL(softmax(teacher / T) || softmax(student / T))`. The factor
    `T**2` keeps the gradients on the scale of the hard-label loss, so that the
    temperature can change without changing the balance of the two.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

    Args:
        teacher_logits: Unnormalized scores, shape `(batch, classes)`.
        student_logits: Unnormalized scores, same shape.
        temperature: Softening factor T > 0, dimensionless: a number, or a scalar
            tensor or variable that a schedule moves.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`; zero where the
        softened predictions agree.

    Raises:
        ValueError: If `temperature` is not positive or the shapes differ.
    """
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature
    )
    return temperature**2 * _divergence(teacher / temperature, student / temperature)


def binary_distillation_loss(
    teacher_logits: Any, student_logits: Any, temperature: Any = 4.0
) -> tf.Tensor:
    """Measures how far each softened yes or no is from the teacher's.

    Computes `T**2` times the mean over the outputs of the divergence of the two
    Bernoulli distributions, `KL(sigmoid(teacher / T) || sigmoid(student / T))`: what
    `distillation_loss` is for labels of which several may apply, and for the single
    unit of two classes. Of such a unit it is `distillation_loss` of the logits
    `(0, logit)`.

    Args:
        teacher_logits: Unnormalized scores, shape `(batch, labels)`; their sigmoid is
            the probability of each label.
        student_logits: Unnormalized scores, same shape.
        temperature: T > 0, as in `distillation_loss`.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`; zero where the softened
        probabilities agree.

    Raises:
        ValueError: If `temperature` is not positive or the shapes differ.
    """
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature, least=1
    )
    teacher, student = teacher / temperature, student / temperature
    yes = tf.math.log_sigmoid(teacher) - tf.math.log_sigmoid(student)
    no = tf.math.log_sigmoid(-teacher) - tf.math.log_sigmoid(-student)
    share = tf.sigmoid(teacher)
    divergence = share * yes + (1.0 - share) * no
    return temperature**2 * tf.reduce_mean(divergence, axis=1)


def soft_cross_entropy(
    teacher_logits: Any, student_logits: Any, temperature: Any = 1.0
) -> tf.Tensor:
    """Computes the cross-entropy of the student and the teacher's soft labels.

    Computes `-T**2 * sum(softmax(teacher / T) * log(softmax(student / T)))`, the
    articles' `L_CE`. It is `distillation_loss` plus `T**2` times the entropy of the
    soft labels, which the student cannot change: the gradient is the same, but the
    loss does not fall to zero.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

    Arguments, result and errors are those of `distillation_loss`.
    """
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature
    )
    return temperature**2 * _cross_entropy(teacher / temperature, student / temperature)


def contrastive_loss(
    teacher_logits: Any, student_logits: Any, temperature: Any = 1.0
) -> tf.Tensor:
    """Compares the soft labels with a softmax of the student's probabilities.

    Computes `-T**2 * sum(softmax(teacher / T) * log(softmax(p)))`, where
    `p = softmax(student / T)`: the term that the articles call contrastive. Their
    formula names no `T**2`, which is 1 at their temperature; as elsewhere, it keeps
    the gradients' scale.

    No examples are contrasted with each other here. Softmax is applied twice, and
    since probabilities differ by 1 at most, `softmax(p)` is nearly flat: it gives no
    class more than `e / (e + classes - 1)`, 0.23 of ten. So the loss never falls
    below `T**2 * (log(e + classes - 1) - 1)`, and a student that agrees with the
    teacher is not at its minimum: it is pushed on, to be surer than the teacher.
    It rewards confidence in what the teacher favours, and does not replace
    `soft_cross_entropy`.

    Source: the articles whose demo `configs/article.yaml` follows. It is not the
    contrastive loss of Tian et al., 2020, https://arxiv.org/abs/1910.10699, to which
    `distill.features.info_nce_loss` is near.

    Arguments, result and errors are those of `distillation_loss`.
    """
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature
    )
    probabilities = tf.nn.softmax(student / temperature)
    return temperature**2 * _cross_entropy(teacher / temperature, probabilities)


def articles_loss(
    teacher_logits: Any,
    student_logits: Any,
    temperature: Any = 1.0,
    contrastive_weight: float = 1.0,
) -> tf.Tensor:
    """Adds the articles' two terms: `L_CE + contrastive_weight * L_contrastive`.

    Source: the articles whose demo `configs/article.yaml` follows. The terms are
    `soft_cross_entropy` and `contrastive_loss`; see there.

    Args:
        teacher_logits: Unnormalized scores, shape `(batch, classes)`.
        student_logits: Unnormalized scores, same shape.
        temperature: T > 0, as in `distillation_loss`.
        contrastive_weight: The articles' lambda, at least 0; at 0 this is
            `soft_cross_entropy`.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`.

    Raises:
        ValueError: If `temperature` is not positive, the weight is negative, or the
            shapes differ.
    """
    check_weights(cross_entropy_weight=1.0, contrastive_weight=contrastive_weight)
    logits = teacher_logits, student_logits, temperature
    return soft_cross_entropy(*logits) + contrastive_weight * contrastive_loss(*logits)


def dkd_loss(
    teacher_logits: Any,
    student_logits: Any,
    labels: Any,
    temperature: Any = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> tf.Tensor:
    """Weights the divergence on the true class and among the other classes separately.

    `distillation_loss` is `TCKD + (1 - p) * NCKD`. TCKD is the divergence between
    the two-way predictions "the true class or not", NCKD the one between the
    predictions among the other classes, and p the teacher's probability of the true
    class: where the teacher is sure, its ranking of the other classes is lost. Here
    they are `T**2 * (alpha * TCKD + beta * NCKD)`. The weights that suit depend on
    the teacher; the paper ramps the loss up over the first epochs.

    Reference: Zhao et al., 2022, https://arxiv.org/abs/2203.08679, section 3.

    Args:
        teacher_logits: Unnormalized scores, shape `(batch, classes)`.
        student_logits: Unnormalized scores, same shape.
        labels: Indices of the true classes in [0, classes), shape `(batch,)` or
            `(batch, 1)`. Where one is -1, not known, the teacher's most likely class
            takes its place.
        temperature: T > 0, as in `distillation_loss`.
        alpha: Weight of TCKD, at least 0.
        beta: Weight of NCKD, at least 0. With two classes NCKD is zero.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`; zero where the
        softened predictions agree.

    Raises:
        ValueError: If `temperature` is not positive, a weight is negative or both
            are 0, or the shapes do not fit.
    """
    check_weights(alpha=alpha, beta=beta)
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature
    )
    labels = _known_labels(labels, teacher)
    teacher, teacher_others = _decoupled(teacher / temperature, labels)
    student, student_others = _decoupled(student / temperature, labels)
    target = _divergence(teacher, student)
    others = _divergence(teacher_others, student_others)
    return temperature**2 * (alpha * target + beta * others)


def dist_loss(
    teacher_logits: Any,
    student_logits: Any,
    temperature: Any = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> tf.Tensor:
    """Measures how little the student's probabilities correlate with the teacher's.

    A student much smaller than its teacher cannot reproduce its probabilities, but can
    reproduce their relations. Computes `beta * inter + gamma * intra` of the Pearson
    distances `1 - correlation`: inter compares an example's probabilities over the
    classes, intra a class's probabilities over the batch, averaged over the classes.

    The distance is computed as half the squared distance of the two centered vectors
    of length 1, which is the same, is exactly zero where the probabilities agree,
    and stays defined where nothing varies: a batch of one has no intra part.

    A correlation has no scale, and so its gradient needs no factor `T**2`; where
    another implementation has it, multiply `beta` and `gamma` by `T**2` to match.

    Reference: Huang et al., 2022, https://arxiv.org/abs/2205.10536, section 4,
    equations 8 and 9.

    Args:
        teacher_logits: Unnormalized scores, shape `(batch, classes)`.
        student_logits: Unnormalized scores, same shape.
        temperature: T > 0, as in `distillation_loss`.
        beta: Weight of inter, at least 0.
        gamma: Weight of intra, at least 0. This part belongs to the batch and is the
            same for each of its examples.

    Returns:
        Loss per example, dimensionless, float32, shape `(batch,)`, in
        `[0, 2 * (beta + gamma)]`.

    Raises:
        ValueError: If `temperature` is not positive, a weight is negative or both
            are 0, or the shapes differ.
    """
    check_weights(beta=beta, gamma=gamma)
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature
    )
    teacher = tf.nn.softmax(teacher / temperature)
    student = tf.nn.softmax(student / temperature)
    inter = _pearson_distance(teacher, student, axis=1)
    intra = _pearson_distance(teacher, student, axis=0)
    return beta * inter + gamma * tf.reduce_mean(intra)


def standardized_loss(
    teacher_logits: Any, student_logits: Any, temperature: Any = 2.0
) -> tf.Tensor:
    """Computes `distillation_loss` of logits standardized for each example.

    Each example's logits are shifted and scaled to mean 0 and deviation 1 over the
    classes, so that a small student need not reproduce the size of its teacher's
    logits. Nothing here sets the size of the student's: the hard-label loss does.

    Reference: Sun et al., 2024, https://arxiv.org/abs/2403.01427, algorithm 1.

    Args:
        teacher_logits: Unnormalized scores, shape `(batch, classes)`.
        student_logits: Unnormalized scores, same shape.
        temperature: T > 0 in units of the logits' deviation; otherwise as in
            `distillation_loss`.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`; zero where the logits
        agree but for a shift and a positive scale.

    Raises:
        ValueError: If `temperature` is not positive or the shapes differ.
    """
    teacher, student, temperature = _checked(
        teacher_logits, student_logits, temperature
    )
    classes = tf.cast(tf.shape(student)[1], tf.float32)
    # A vector of mean 0 and deviation 1 has the length sqrt(classes).
    scale = tf.sqrt(classes) / temperature
    teacher, student = _unit(teacher, axis=1), _unit(student, axis=1)
    return temperature**2 * _divergence(scale * teacher, scale * student)


# What a recipe calls them. `dkd` takes the labels as well. The articles' contrastive
# term goes by their name, since `contrastive` compares features.
LOGIT_LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "kl": distillation_loss,
    "cross_entropy": soft_cross_entropy,
    "articles": articles_loss,
    "articles_contrastive": contrastive_loss,
    "dkd": dkd_loss,
    "dist": dist_loss,
    "standardized": standardized_loss,
}


# Those of them that compare labels of which several may apply, or a single unit.
SIGMOID_LOSSES: dict[Callable[..., tf.Tensor], Callable[..., tf.Tensor]] = {
    distillation_loss: binary_distillation_loss,
}


def _checked(
    teacher_logits: Any, student_logits: Any, temperature: Any, least: int = 2
) -> tuple[Any, Any, Any]:
    """Returns all three as float32 tensors that fit each other, or raises."""
    temperature = tf.cast(tf.convert_to_tensor(temperature), tf.float32)
    if not temperature.shape.is_compatible_with([]):
        raise ValueError(
            "temperature must be one number. Received: shape "
            f"{tuple(temperature.shape)}; give each loss its own temperature."
        )
    # What a schedule moves has no value while a graph is built.
    value = tf.get_static_value(temperature)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(
            f"temperature must be a finite number above 0. Received: {value:g}"
        )
    teacher = tf.cast(teacher_logits, tf.float32)
    student = tf.cast(student_logits, tf.float32)
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "teacher and student must give logits of one shape (batch, classes). "
            f"Received: teacher {teacher.shape}, student {student.shape}"
        )
    shape = teacher.shape.merge_with(student.shape)
    if not shape.is_compatible_with([None, None]) or (shape[1:] == [1] and least > 1):
        raise ValueError(
            "logits must have the shape (batch, classes), with two classes at least. "
            f"Received: {shape}; for a single sigmoid output there is "
            "binary_distillation_loss."
        )
    # What only one of the two knows while a graph is built holds for both.
    teacher, student = tf.ensure_shape(teacher, shape), tf.ensure_shape(student, shape)
    return teacher, student, temperature


def check_weights(**weights: float) -> None:
    """Raises `ValueError` unless weights are finite, at least 0 and not all 0."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"{name} must be finite and at least 0. Received: {weight}"
            )
    if not any(weights.values()):
        raise ValueError(
            f"one of {', '.join(weights)} must be above 0. Received: 0 for each; "
            "leave the loss out instead."
        )


def _known_labels(labels: Any, teacher: Any) -> Any:
    """Returns int32 `(batch,)`, the teacher's most likely class in place of -1."""
    labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
    if not labels.shape.is_compatible_with(teacher.shape[:1]):
        raise ValueError(
            "labels must be one class index per example, not one-hot. Received: "
            f"{labels.shape[0]} values for {teacher.shape[0]} examples."
        )
    likeliest = tf.argmax(teacher, axis=1, output_type=tf.int32)
    return tf.where(labels == -1, likeliest, labels)


def _decoupled(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Splits logits into those of "the label or not" and those among the others.

    The others are gathered, not masked, so that no infinity enters a gradient.

    Returns:
        Logits `(batch, 2)` and `(batch, classes - 1)`.
    """
    others = tf.range(tf.shape(logits)[1] - 1)[tf.newaxis]
    others += tf.cast(others >= labels[:, tf.newaxis], tf.int32)
    others = tf.gather(logits, others, axis=1, batch_dims=1)
    target = tf.gather(logits, labels, axis=1, batch_dims=1)
    return tf.stack([target, tf.reduce_logsumexp(others, axis=1)], axis=1), others


def _divergence(teacher: Any, student: Any) -> Any:
    """Returns KL(softmax(teacher) || softmax(student)) of each row, in nats."""
    teacher, student = tf.nn.log_softmax(teacher), tf.nn.log_softmax(student)
    return tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=1)


def _cross_entropy(teacher: Any, student: Any) -> Any:
    """Returns -sum(softmax(teacher) * log(softmax(student))) of each row, in nats."""
    return -tf.reduce_sum(tf.nn.softmax(teacher) * tf.nn.log_softmax(student), axis=1)


def _pearson_distance(teacher: Any, student: Any, axis: int) -> Any:
    difference = _unit(teacher, axis) - _unit(student, axis)
    return 0.5 * tf.reduce_sum(difference**2, axis)


def _unit(values: Any, axis: int) -> Any:
    """Centers along an axis and scales to length 1; what is constant becomes 0."""
    centered = values - tf.reduce_mean(values, axis, keepdims=True)
    return tf.math.l2_normalize(centered, axis, epsilon=_SHORTEST**2)
