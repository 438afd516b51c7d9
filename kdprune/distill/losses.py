"""Distillation losses: pure functions of logits."""

import tensorflow as tf


def distillation_loss(teacher_logits, student_logits, temperature=4.0):
    """Measures how far the student's softened predictions are from the teacher's.

    Computes `T**2 * KL(softmax(teacher / T) || softmax(student / T))`. The factor
    `T**2` keeps the gradients on the scale of the hard-label loss, so that the
    temperature can change without changing the balance of the two.

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

    Args:
        teacher_logits: Unnormalised scores, shape `(batch, classes)`.
        student_logits: Unnormalised scores, same shape.
        temperature: Softening factor T > 0, dimensionless.

    Returns:
        Loss per example in nats, float32, shape `(batch,)`; zero where the
        softened predictions agree.

    Raises:
        ValueError: If `temperature` is not positive or the shapes differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0. Received: {temperature}")
    teacher_logits = tf.cast(teacher_logits, tf.float32)
    student_logits = tf.cast(student_logits, tf.float32)
    if not teacher_logits.shape.is_compatible_with(student_logits.shape):
        raise ValueError(
            "teacher and student must give logits of one shape (batch, classes). "
            f"Received: teacher {teacher_logits.shape}, student {student_logits.shape}"
        )
    teacher = tf.nn.log_softmax(teacher_logits / temperature)
    student = tf.nn.log_softmax(student_logits / temperature)
    divergence = tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * divergence
