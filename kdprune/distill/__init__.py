"""Distillation: losses, the `Distiller`, stored soft labels."""

from kdprune.distill.distiller import Distiller
from kdprune.distill.losses import LOGIT_LOSSES, distillation_loss
from kdprune.distill.objective import SOFT_LOSSES, Schedule, SoftLoss, as_soft_losses
from kdprune.distill.soft_labels import load_soft_labels, store_key, write_soft_labels
from kdprune.distill.taps import default_taps, feature_maps
from kdprune.distill.toy import fit_outputs

__all__ = [
    "LOGIT_LOSSES",
    "SOFT_LOSSES",
    "Distiller",
    "Schedule",
    "SoftLoss",
    "as_soft_losses",
    "default_taps",
    "distillation_loss",
    "feature_maps",
    "fit_outputs",
    "load_soft_labels",
    "store_key",
    "write_soft_labels",
]
