"""Distillation: losses, the `Distiller`, stored soft labels."""

from kdprune.distill.distiller import Distiller
from kdprune.distill.feature_extractor import (
    default_feature_layers,
    feature_extractor,
    feature_layers,
    match_feature_layers,
)
from kdprune.distill.features import FEATURE_LOSSES, FeatureLoss
from kdprune.distill.loss_spec import SoftLoss, as_soft_losses, register_loss
from kdprune.distill.losses import LOGIT_LOSSES, distillation_loss
from kdprune.distill.schedule import Schedule
from kdprune.distill.soft_labels import (
    describe_soft_labels,
    load_soft_labels,
    store_key,
    write_soft_labels,
)
from kdprune.distill.toy import fit_outputs

__all__ = [
    "FEATURE_LOSSES",
    "LOGIT_LOSSES",
    "Distiller",
    "FeatureLoss",
    "Schedule",
    "SoftLoss",
    "as_soft_losses",
    "default_feature_layers",
    "describe_soft_labels",
    "distillation_loss",
    "feature_extractor",
    "feature_layers",
    "fit_outputs",
    "load_soft_labels",
    "match_feature_layers",
    "register_loss",
    "store_key",
    "write_soft_labels",
]
