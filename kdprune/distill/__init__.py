"""Distillation: losses, the `Distiller`, stored soft labels."""

from kdprune.distill.distiller import Distiller
from kdprune.distill.losses import distillation_loss
from kdprune.distill.soft_labels import load_soft_labels, write_soft_labels

__all__ = ["Distiller", "distillation_loss", "load_soft_labels", "write_soft_labels"]
