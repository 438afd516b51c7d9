"""Distillation without a network: outputs that descend towards a teacher's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def fit_outputs(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    temperature: float = 1.0,
    soft_weight: float = 0.5,
    learning_rate: float = 1.0,
    steps: int = 100,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Moves a student's outputs towards a teacher's by gradient descent.

    The articles' smallest example of distillation, for outputs of shape (3, 2): there
    is no network, the outputs themselves are what is learned. An example's loss is
    the one that `Distiller` minimises,

        soft = T**2 * KL(softmax(teacher / T) || softmax(student / T))
        hard = -log(softmax(student))[label]
        loss = soft_weight * soft + (1 - soft_weight) * hard

    and, without labels, `soft` alone. Its gradient with respect to the outputs is

        soft_weight * T * (softmax(student / T) - softmax(teacher / T))
        + (1 - soft_weight) * (softmax(student) - one_hot(label))

    The articles' own code does something else: its update diverges, and its hard loss
    does not broadcast over the outputs. Here labels are made one-hot, each example
    descends its own loss, and since no curvature of that loss exceeds 1/2, every step
    at a learning rate below 4 lowers it.

    Softmax does not see a constant added to an example's outputs, and no step changes
    their sum: without labels they end at the teacher's but for such a constant.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

    Args:
        student: Logits to start from, shape `(examples, classes)`; not changed.
        teacher: Logits to learn from, same shape.
        labels: Class indices in [0, classes), shape `(examples,)`, or None.
        temperature: Softening factor T > 0.
        soft_weight: Share of the soft loss where there are labels, in [0, 1].
        learning_rate: In (0, 4).
        steps: How many steps to take, 0 or more.

    Returns:
        The outputs, float64 `(examples, classes)`, and the mean losses in nats
        before each step and after the last, float64 `(steps + 1,)`.

    Raises:
        ValueError: If shapes do not fit or a setting is out of its range.

    Example:
        >>> teacher = [[2.0, 0.0], [-1.0, 1.0], [0.5, -0.5]]
        >>> outputs, losses = fit_outputs(np.zeros((3, 2)), teacher)
        >>> np.round(outputs, 2)
        array([[ 1. , -1. ],
               [-1. ,  1. ],
               [ 0.5, -0.5]])
    """
    outputs = np.array(student, np.float64)
    teacher = np.asarray(teacher, np.float64)
    _check(outputs, teacher, labels, temperature, soft_weight, learning_rate, steps)
    soft_log = _log_softmax(teacher / temperature)
    one_hot = None if labels is None else np.eye(outputs.shape[1])[np.asarray(labels)]

    def loss_and_gradient() -> tuple[np.floating, NDArray[np.float64]]:
        log = _log_softmax(outputs / temperature)
        soft = temperature**2 * np.sum(np.exp(soft_log) * (soft_log - log), axis=1)
        soft_gradient = temperature * (np.exp(log) - np.exp(soft_log))
        if one_hot is None:
            return np.mean(soft), soft_gradient
        log = _log_softmax(outputs)
        hard = -np.sum(one_hot * log, axis=1)
        hard_gradient = np.exp(log) - one_hot
        return (
            np.mean(soft_weight * soft + (1 - soft_weight) * hard),
            soft_weight * soft_gradient + (1 - soft_weight) * hard_gradient,
        )

    loss, gradient = loss_and_gradient()
    losses = [loss]
    for _ in range(steps):
        outputs -= learning_rate * gradient
        loss, gradient = loss_and_gradient()
        losses.append(loss)
    return outputs, np.array(losses)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check(
    student: NDArray[np.float64],
    teacher: NDArray[np.float64],
    labels: ArrayLike | None,
    temperature: float,
    soft_weight: float,
    learning_rate: float,
    steps: int,
) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            "teacher and student must be logits of one shape (examples, classes). "
            f"Received: teacher {teacher.shape}, student {student.shape}"
        )
    if not (np.isfinite(student).all() and np.isfinite(teacher).all()):
        raise ValueError("logits must be finite. Received: NaN or infinity among them")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be a whole number >= 0. Received: {steps!r}")
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"temperature must be a finite number above 0. Received: {temperature}"
        )
    if not 0 <= soft_weight <= 1:
        raise ValueError(f"soft_weight must be in [0, 1]. Received: {soft_weight}")
    if not 0 < learning_rate < 4:
        raise ValueError(
            f"learning_rate must be above 0 and below 4, beyond which steps overshoot. "
            f"Received: {learning_rate}"
        )
    if labels is None:
        return
    labels = np.asarray(labels)
    if labels.shape != student.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            "labels must be one class index per example, not one-hot. Received: "
            f"shape {labels.shape}, {labels.dtype}, for {len(student)} examples."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < student.shape[1]:
        raise ValueError(
            f"labels must be in [0, {student.shape[1]}). Received: {labels.min()} to "
            f"{labels.max()}"
        )
