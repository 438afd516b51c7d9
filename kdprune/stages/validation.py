"""Training images that rank channels and blocks, and figures on the validation set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kdprune.data import to_float
from kdprune.stages.base import Run

if TYPE_CHECKING:
    import tf_keras as keras

# Training images that rank channels and recalibrate batch normalization.
_IMAGES = 2048


def ranking_images(run: Run, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some training images, float32 in [0, 1], and their labels."""
    train = run.dataset.train
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = order[:_IMAGES]
    return to_float(train.images[chosen]), train.labels[chosen]


def validation_loss(run: Run) -> Callable[[keras.Model], float]:
    """A function of a model: its mean cross-entropy on the validation images."""
    from kdprune import training

    return _validation_mean(run, training.cross_entropy)


def validation_accuracy(run: Run) -> Callable[[keras.Model], float]:
    """A function of a model: its accuracy on the validation images."""
    return _validation_mean(run, lambda labels, logits: labels == logits.argmax(axis=1))


def _validation_mean(run: Run, figure: Callable) -> Callable[[keras.Model], float]:
    validation = run.dataset.validation
    images = to_float(validation.images)

    def mean(model):
        logits = model.predict(images, batch_size=500, verbose=0)
        return float(np.mean(figure(validation.labels, logits)))

    return mean
