"""What is settled before a model is built: random state, precision, devices."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import tensorflow as tf
import tf_keras as keras

from kdprune.models.counts import count_macs
from kdprune.models.precision import fits_bfloat16
from kdprune.training.speed import measured_precision

# A group takes some seconds at most, since Ctrl-C is heard between groups only.
_GROUP_MACS = 10e9
_LARGEST_GROUP = 32


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow, and forgets earlier models' names.

    Layer names and random streams count up within a process; without the reset
    a stage would depend on the stages that ran before it. Dropout and noise
    layers made from now on keep their random state in a variable, which `fit`
    saves; by default TensorFlow hides it where it can't be saved. `layers_as_before`
    ends that.
    """
    keras.backend.clear_session()
    keras.backend.experimental.enable_tf_random_generator()
    keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def layers_as_before() -> Iterator[None]:
    """Layers made afterwards keep their random state as those made before did.

    A program that runs a stage makes models of its own, whose graphs must not depend
    on that: what `seed_everything` sets for new layers is set for the whole process.
    """
    backend = keras.backend.experimental
    in_variables = backend.is_tf_random_generator_enabled()
    try:
        yield
    finally:
        if not in_variables:
            backend.disable_tf_random_generator()


def resolve_precision(
    precision: str = "auto",
    model: keras.Model | None = None,
    batch_size: int | None = None,
) -> str:
    """Turns "auto" into the precision policy that is quickest on this machine.

    Args:
        precision: "auto", or a policy.
        model: What is to be computed; any model if None.
        batch_size: Images of a training step, to time the model by
            (`speed.measured_precision`) where the processor has bfloat16; None to go
            by its widths alone.

    Returns:
        "mixed_bfloat16" where a GPU is present, or the processor multiplies bfloat16
        natively (AMX or AVX512-BF16) and the model's widths are what it takes
        (`models.precision.fits_bfloat16`), else "float32"; any other value is
        returned unchanged.
    """
    if precision != "auto":
        return precision
    if tf.config.list_physical_devices("GPU"):
        return "mixed_bfloat16"
    if not _has_bfloat16():
        return "float32"
    fits = model is None or fits_bfloat16(model)
    likely = "mixed_bfloat16" if fits else "float32"
    if model is None or batch_size is None:
        return likely
    return measured_precision(model, batch_size, likely)


def _has_bfloat16() -> bool:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def steps_together(model: keras.Model, batch_size: int) -> int:
    """How many training steps to compute in one go: `steps_per_execution`.

    What Python does between two steps, one to three milliseconds, is as long as half
    of a step of the smallest networks.

    Args:
        model: A `keras.Model` whose multiply-accumulates can be counted.
        batch_size: Images in a step.

    Returns:
        A number from 1 (large networks) to 32.
    """
    macs = count_macs(model) * batch_size
    return int(min(max(_GROUP_MACS / max(macs, 1), 1), _LARGEST_GROUP))


def strategy() -> tf.distribute.Strategy:
    """Mirrors training over all GPUs where there are several, else the default."""
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return _mirrored()
    return tf.distribute.get_strategy()


def is_in_scope(model: keras.Model) -> bool:
    """Whether a model was made under the strategy that is in scope now."""
    created = tf.distribute.get_strategy().extended.variable_created_in_scope
    return all(created(variable) for variable in model.variables)


@functools.cache
def _mirrored() -> tf.distribute.Strategy:
    # Two such strategies in one process mistake each other's messages.
    return tf.distribute.MirroredStrategy()
