"""Factories of teachers and students, safe loading and saving, the layer graph."""

from kdprune.models.counts import count_macs, count_parameters
from kdprune.models.factories import (
    MODELS,
    build_model,
    register_model,
    reset_weights,
)
from kdprune.models.io import load_model, save_model
from kdprune.models.taking import take_model

__all__ = [
    "MODELS",
    "build_model",
    "count_macs",
    "count_parameters",
    "load_model",
    "register_model",
    "reset_weights",
    "save_model",
    "take_model",
]
