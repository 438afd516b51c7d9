"""Quantization-aware training (QAT): models that train as int8 will compute.

A QAT model rounds its weights and activations in the forward pass to the values
that int8 can hold, and learns to live with them. It is a float32 `keras.Model`:
compile it, fit it, or put it under a `Distiller`, and hand it to
`kdprune.tflite.convert_tflite`. Post-training quantization (PTQ) has no Keras
form: there the float model and a conversion plan are the artifact. What either does
to a tensor can be had for arrays: `quantize_affine`, `dequantize_affine`.
"""

from kdprune._former import former_names
from kdprune.quantize.arrays import (
    affine_parameters,
    dequantize_affine,
    quantize_affine,
    quantize_linear,
)
from kdprune.quantize.artifact import load_quantized, read_plan, save_quantized
from kdprune.quantize.budget import Attempt, Outcome, meet_budget
from kdprune.quantize.clusters import (
    cluster_weights,
    clustered_layers,
    count_clusters,
    strip_clustering,
)
from kdprune.quantize.equalize import equalize_channels
from kdprune.quantize.fold import fold_batch_norm
from kdprune.quantize.obstacles import qat_obstacles
from kdprune.quantize.qat import calibrate_ranges, quantize_model

__all__ = [
    "Attempt",
    "Outcome",
    "affine_parameters",
    "calibrate_ranges",
    "cluster_weights",
    "clustered_layers",
    "count_clusters",
    "dequantize_affine",
    "equalize_channels",
    "fold_batch_norm",
    "load_quantized",
    "meet_budget",
    "qat_obstacles",
    "quantize_affine",
    "quantize_linear",
    "quantize_model",
    "read_plan",
    "save_quantized",
    "strip_clustering",
]

__getattr__ = former_names(__name__, {"fold_batch_norms": "fold_batch_norm"})
