"""Which precision a network trains in quickest here: measured once, remembered."""

from __future__ import annotations

import os
import pathlib
import statistics
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune import _io, records
from kdprune._log import logger
from kdprune.models.precision import cast_model

_POLICIES = ("float32", "mixed_bfloat16")
_STEPS = 3
# So much quicker must one be to be taken against what the rule says: a choice between
# equals would change with what else the machine does.
_MARGIN = 1.1


def measured_precision(model: keras.Model, batch_size: int, likely: str) -> str:
    """Times a training step in float32 and in bfloat16, and takes the quicker.

    The times are kept for this machine's processor, this TensorFlow and the network's
    layers in `kdprune/step_seconds.json` of the user's cache folder (`XDG_CACHE_HOME`,
    or `~/.cache`), so that a network is measured once.

    Args:
        model: A Functional or Sequential `keras.Model` of known image size; it is left
            as it was.
        batch_size: Images in a step.
        likely: The policy to take unless the other is a tenth quicker; also where the
            model can't compute in bfloat16.

    Returns:
        "float32" or "mixed_bfloat16".
    """
    key = _key(model, batch_size)
    seconds = _read().get(key)
    if seconds is None:
        try:
            casts = {policy: cast_model(model, policy) for policy in _POLICIES}
        except ValueError:
            return likely
        seconds = _measure(casts, batch_size)
        _write({**_read(), key: seconds})
    (other,) = (policy for policy in _POLICIES if policy != likely)
    return other if seconds[likely] > _MARGIN * seconds[other] else likely


def known_seconds(model: keras.Model, batch_size: int) -> dict[str, float] | None:
    """What a training step of a network took here, by precision; None if not measured.

    Args:
        model: As for `measured_precision`.
        batch_size: Images in a step.
    """
    return _read().get(_key(model, batch_size))


def _key(model: keras.Model, batch_size: int) -> str:
    parts = [one for one in model._flatten_layers() if not isinstance(one, keras.Model)]
    layers = [layer.get_config() for layer in parts]
    for config in layers:
        config.pop("name", None)  # Of a model made twice they differ.
    shapes = [tuple(weight.shape) for weight in model.weights]
    machine = records.machine()["processor"], os.cpu_count(), tf.__version__
    described = (machine, model.input_shape, batch_size, layers, shapes)
    return _io.sha256(repr(described).encode())


def _measure(casts: dict[str, keras.Model], batch_size: int) -> dict[str, float]:
    """Median seconds of a step by precision, the models of both interleaved."""
    random = np.random.default_rng(0)
    model = casts["float32"]
    shape = (batch_size, *model.input_shape[1:])
    images = tf.constant(random.random(shape, np.float32))
    steps = {policy: _step(cast) for policy, cast in casts.items()}
    seconds: dict[str, list[float]] = {policy: [] for policy in _POLICIES}
    for step in steps.values():
        step(images)  # Traces, and fills caches.
    for _ in range(_STEPS):
        for policy, step in steps.items():
            started = time.perf_counter()
            step(images).numpy()
            seconds[policy].append(time.perf_counter() - started)
    medians = {policy: statistics.median(values) for policy, values in seconds.items()}
    logger.info(
        "a training step of %s takes %.0f ms in float32 and %.0f ms in bfloat16",
        model.name,
        *(1000 * medians[policy] for policy in _POLICIES),
    )
    return medians


def _step(model: keras.Model) -> Any:
    """A compiled function of images: forward, backward, and the weights' update."""

    @tf.function
    def step(images: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = tf.cast(model(images, training=True), "float32")
            loss = tf.reduce_mean(tf.square(outputs))
        weights = model.trainable_variables
        for variable, gradient in zip(
            weights, tape.gradient(loss, weights), strict=True
        ):
            if gradient is not None:
                variable.assign_sub(1e-9 * gradient)
        return loss

    return step


def _path() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "kdprune" / "step_seconds.json"


def _read() -> dict[str, dict[str, float]]:
    """What is known; nothing if the file is not there, or not as it was written."""
    try:
        known = _io.read_object(_path())
    except OSError:
        return {}
    return {key: value for key, value in known.items() if _is_measured(value)}


def _is_measured(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != set(_POLICIES):
        return False
    return all(isinstance(s, float) and 0 < s < float("inf") for s in value.values())


def _write(known: dict[str, dict[str, float]]) -> None:
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        _io.write_json(_path(), known)
    except OSError:
        pass  # A home that can't be written: measured again next time.
