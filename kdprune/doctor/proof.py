"""Whether what is worked on says what the original does."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray

from kdprune.doctor.findings import Obstacle
from kdprune.intake import Taken
from kdprune.intake.comparison import Comparison, compare_outputs
from kdprune.models.original import allow_rounding, outputs_of

# Of the largest output: layers are folded and split, which sums in another order.
_LIMIT = 1e-4
_LOADED = "the model as loaded"


def prove(
    loaded: keras.Model, taken: Taken, images: NDArray, original: Comparison | None
) -> tuple[Comparison, list[Obstacle]]:
    """Compares outputs of what is worked on with the original's.

    Args:
        loaded: The model as it was given, in tf_keras.
        taken: What was made of it.
        images: uint8, `(n, height, width, channels)`.
        original: How far `loaded` is from what the Keras that saved it computes; None
            where it came from memory.

    Returns:
        `(proof, obstacles)`; it is one where they differ.
    """
    values = taken.range.apply(images)
    expected = outputs_of(loaded, values)
    unit = images.astype(np.float32) / np.float32(255)
    found = _scored(outputs_of(taken.model, unit)[0], taken.head.activation)
    proof = compare_outputs(_LOADED, expected, [found], _LIMIT)
    proof = allow_rounding(proof, loaded, values)
    problems = [proof]
    if original is not None and original.deviation is not None:
        # Both steps, from the original to what was loaded to what is worked on.
        deviation = (proof.deviation or 0.0) + original.deviation
        problems.append(original)
        limit = max(proof.limit, original.limit)
        proof = Comparison(original.original, proof.images, deviation, limit)
    elif original is not None:
        name = f"{_LOADED} ({original})"
        proof = Comparison(name, proof.images, proof.deviation, proof.limit)
    remedy = "please report it, with the model's layers"
    return proof, [
        Obstacle(
            "loading",
            "",
            f"outputs differ from those of {one.original} by {one.deviation:.2g} of "
            f"the largest, on {one.images} images",
            remedy,
        )
        for one in problems
        if not one.agrees
    ]


def _scored(logits: Any, activation: str) -> NDArray:
    kinds = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid}
    return np.asarray(kinds[activation](logits) if activation in kinds else logits)
