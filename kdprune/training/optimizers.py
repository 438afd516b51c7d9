"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune import _registry

# Weight decay shrinks kernels only: on BatchNorm's scale and shift and on biases
# it costs accuracy without making the function simpler.
_NO_DECAY = [r"(^|/)(bias|gamma|beta)(:|$)"]


@keras.utils.register_keras_serializable("kdprune")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to a peak, then falls to zero.

    Reference: Smith & Topin, 2017, arXiv:1708.07120.

    Args:
        peak: Highest learning rate.
        steps: Optimizer steps of the whole cycle.
        warmup: Share of the steps, in [0, 1), that the rise takes. It starts at a
            fifth of the peak.
        fall: "linear" or "cosine".
    """

    def __init__(
        self, peak: float, steps: int, warmup: float = 0.2, fall: str = "linear"
    ) -> None:
        self.peak, self.steps, self.warmup, self.fall = peak, steps, warmup, fall

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rise = float(self.warmup * self.steps)
        up = 0.2 + 0.8 * step / max(rise, 1.0)
        left = 1.0 - tf.clip_by_value((step - rise) / max(self.steps - rise, 1), 0, 1)
        down = left if self.fall == "linear" else 0.5 - 0.5 * tf.cos(math.pi * left)
        return self.peak * tf.where(step < rise, up, down)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "steps": self.steps,
            "warmup": self.warmup,
            "fall": self.fall,
        }


def build_optimizer(
    name: str = "sgd",
    learning_rate: float = 0.1,
    *,
    steps: int,
    schedule: str = "one_cycle",
    warmup: float = 0.2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    ema: float | None = None,
) -> keras.optimizers.Optimizer:
    """Builds an optimizer with its schedule, decoupled weight decay and EMA.

    Args:
        name: "sgd" (Nesterov momentum), "adam" or "adamw".
        learning_rate: Peak of the schedule, or the constant rate.
        steps: Optimizer steps of the whole training.
        schedule: "one_cycle" (linear fall), "cosine" or "constant".
        warmup: Share of the steps in which the rate rises; unused if constant.
        momentum: Of SGD.
        weight_decay: Decoupled: each step multiplies kernels by
            `1 - learning_rate * weight_decay`. BatchNorm and biases are exempt.
        ema: Momentum in (0, 1) of an exponential moving average of the weights,
            kept by the optimizer; None for none.

    Raises:
        ValueError: If `name` or `schedule` is not one of these, or a number is out of
            its range.
    """
    _check_choice("optimizer", name, ("sgd", "adam", "adamw"))
    _check_choice("schedule", schedule, ("one_cycle", "cosine", "constant"))
    _check_numbers(learning_rate, steps, warmup, momentum, weight_decay, ema)
    rate = learning_rate
    if schedule != "constant":
        fall = "linear" if schedule == "one_cycle" else "cosine"
        rate = OneCycle(learning_rate, steps, warmup, fall)
    common = {"use_ema": bool(ema), "ema_momentum": ema or 0.99, "jit_compile": False}
    if weight_decay:
        common["weight_decay"] = weight_decay
    if name == "sgd":
        optimizer = keras.optimizers.SGD(
            rate, momentum=momentum, nesterov=momentum > 0, **common
        )
    elif name == "adam":
        optimizer = keras.optimizers.Adam(rate, **common)
    else:
        optimizer = keras.optimizers.AdamW(rate, **common)
        if not weight_decay:
            optimizer.weight_decay = None
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=_NO_DECAY)
    return optimizer


def _check_numbers(
    learning_rate: float,
    steps: int,
    warmup: float,
    momentum: float,
    weight_decay: float,
    ema: float | None,
) -> None:
    # Written so that NaN is refused, too.
    for what, value, fits, range_ in (
        ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "above 0"),
        ("steps", steps, 0 < steps < math.inf, "above 0"),
        ("warmup", warmup, 0 <= warmup < 1, "in [0, 1)"),
        ("momentum", momentum, 0 <= momentum < 1, "in [0, 1)"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0"),
        ("ema", ema, ema is None or 0 <= ema < 1, "in (0, 1), or None"),
    ):
        if not fits:
            raise ValueError(f"{what} must be {range_}. Received: {value}")


def _check_choice(what: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(
            f"{what} must be one of {', '.join(valid)}. Received: {value!r}"
            f"{_registry.nearest(value, valid)}"
        )


def build_variables(model: keras.Model) -> None:
    """Makes a compiled model's optimizer variables before it is fitted.

    Keras makes them within the first step, which TensorFlow traces twice then: half
    of the time before training begins.

    Args:
        model: A compiled model whose trainable variables are all there.
    """
    if hasattr(model.optimizer, "build"):  # Those of `optimizers.legacy` have none.
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Lends a model its optimizer's averaged weights, if it keeps an average."""
    if not getattr(model.optimizer, "use_ema", False):
        yield
        return
    current = [variable.numpy() for variable in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, current, strict=True):
            variable.assign(value)
