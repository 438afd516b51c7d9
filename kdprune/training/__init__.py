"""Fitting: seed, precision, optimizer, schedule, selection, resume."""

from kdprune.training.checkpoints import ForeignCheckpoint
from kdprune.training.class_weights import balanced_weights, weight_classes
from kdprune.training.fit import TrainingDiverged, fit
from kdprune.training.losses import (
    HARD_LOSSES,
    accuracy_metric,
    binary_cross_entropy,
    cross_entropy,
)
from kdprune.training.optimizers import OneCycle, build_optimizer
from kdprune.training.setup import (
    is_in_scope,
    layers_as_before,
    resolve_precision,
    seed_everything,
    steps_together,
    strategy,
)
from kdprune.training.speed import known_seconds

__all__ = [
    "HARD_LOSSES",
    "ForeignCheckpoint",
    "OneCycle",
    "TrainingDiverged",
    "accuracy_metric",
    "balanced_weights",
    "binary_cross_entropy",
    "build_optimizer",
    "cross_entropy",
    "fit",
    "is_in_scope",
    "known_seconds",
    "layers_as_before",
    "resolve_precision",
    "seed_everything",
    "steps_together",
    "strategy",
    "weight_classes",
]
