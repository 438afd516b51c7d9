"""Training images that rank channels and blocks, and figures on the validation set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kdprune.stages.base import Run

if TYPE_CHECKING:
    import tf_keras as keras

# Training images that rank channels and recalibrate batch normalization.
_IMAGES = 2048


def ranking_images(run: Run, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some training images, uint8, and their labels."""
    train = run.dataset.train
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = order[:_IMAGES]
    labels = train.labels[chosen]
    # Rows of booleans say that several labels may apply.
    labels = labels.astype(bool) if labels.ndim == 2 else labels
    return train.images[chosen], labels


def validation_loss(run: Run) -> Callable[[keras.Model], float]:
    """A function of a model: its mean cross-entropy on the validation images."""
    from kdprune import training
    from kdprune._graph import head_of

    def loss(model, labels, logits):
        head = head_of(model, f"model {model.name!r}", run.dataset.head)
        return training.HARD_LOSSES[head](labels, logits)

    return _validation_mean(run, loss)


def validation_accuracy(run: Run) -> Callable[[keras.Model], float]:
    """A function of a model: its accuracy on the validation images.

    Of several labels, the share of right answers.
    """

    def right(model, labels, logits):
        return right_by_logits(labels, logits)

    return _validation_mean(run, right)


def right_by_logits(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Which answers are right: of each image, or of each label of each image."""
    if labels.ndim == 2:
        return (logits > 0) == (labels == 1)
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0) == (labels == 1)
    return logits.argmax(axis=1) == labels


def _validation_mean(run: Run, figure: Callable) -> Callable[[keras.Model], float]:
    from kdprune.data.batches import evaluation_batches

    validation = run.dataset.validation
    images = evaluation_batches(validation).map(lambda images, _: images)

    def mean(model):
        logits = model.predict(images, verbose=0)
        return float(np.mean(figure(model, validation.labels, logits)))

    return mean
