"""About how long a `compress` takes, and how much memory and disk."""

from __future__ import annotations

import math
import os

import tf_keras as keras

from kdprune.models import count_macs, count_parameters
from kdprune.stages.fitting import seconds_for
from kdprune.stages.quantize import Quantize

# Images that are assumed where none are given, and those that ranges are taken from.
ASSUMED_IMAGES = 5_000
_CALIBRATION = 500
# Multiply-accumulates a second of one core in a forward pass, and what a process takes.
_FORWARD = 10e9
_PROCESS = 900 * 2**20
_BATCH = 128
# Copies of the weights: themselves, gradients, an optimizer's two averages, a teacher.
_COPIES = 5
_SAVED = 10  # Models of the stages, and checkpoints with the optimizer's state.
# Conversions of a compress, by draft conversions: two of them, each saved on the way.
_SLOWER = 6
_PASSES = 3 + 1  # Forward, backward twice as much, a teacher's forward.


def estimate(
    model: keras.Model, conversion: float, images: int | None
) -> dict[str, float]:
    """Estimates a `compress`, to plan an evening by.

    Args:
        model: The flat model.
        conversion: Seconds that one conversion took.
        images: How many images there are to train on; a few thousand if None.

    Returns:
        As `Diagnosis.estimate`; empty if the model's MACs can't be counted.
    """
    try:
        macs = count_macs(model)
    except ValueError:
        return {}
    count = ASSUMED_IMAGES if images is None else images
    cores = os.cpu_count() or 1
    scored = macs * (_CALIBRATION + 2 * count) / (_FORWARD * cores)
    activations = sum(math.prod(layer.output_shape[1:]) for layer in model.layers[1:])
    pixels = count * math.prod(model.input_shape[1:])
    parameters = count_parameters(model)
    return {
        "images": count,
        "post_training_seconds": _SLOWER * conversion + scored,
        "epoch_seconds": seconds_for(macs * count * _PASSES, "auto"),
        "qat_epoch_seconds": seconds_for(
            macs * count * (Quantize.passes + 1), "float32"
        ),
        "memory_bytes": _PROCESS
        + 4 * (_COPIES * parameters + _BATCH * activations)
        + pixels,
        "disk_bytes": 4 * _SAVED * parameters,
    }
