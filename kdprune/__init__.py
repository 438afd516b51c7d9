"""kdprune: small, fast, verified int8 image classifiers from Keras models.

TensorFlow Model Optimization accepts only Keras 2 models, so the legacy Keras
is selected here, before anything can import TensorFlow. The public names are
loaded on first use: `import kdprune` alone is quick and imports no TensorFlow.
"""

import importlib
import os
import platform

from kdprune._former import former_names

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# The runtime's start-up notices would bury the one line that matters to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow leaves oneDNN's kernels alone on processors without instructions for neural
# networks; on one (Zen 3) training is 1.5 to 2.2 times as fast with them
# (scripts/bench_kernels.py).
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

_PUBLIC = {
    "compress": "kdprune.compression",
    "build_model": "kdprune.models",
    "load_model": "kdprune.models",
    "save_model": "kdprune.models",
    "take_model": "kdprune.models",
    "register_model": "kdprune.models",
    "count_macs": "kdprune.models",
    "load_dataset": "kdprune.data",
    "Distiller": "kdprune.distill",
    "distillation_loss": "kdprune.distill",
    "plan_channels": "kdprune.prune",
    "register_importance": "kdprune.prune",
    "register_layer_rule": "kdprune.prune",
    "prune_channels": "kdprune.prune",
    "remove_blocks": "kdprune.prune",
    "recalibrate_batch_norm": "kdprune.prune",
    "prune_magnitude": "kdprune.prune",
    "strip_pruning": "kdprune.prune",
    "quantize_model": "kdprune.quantize",
    "fold_batch_norm": "kdprune.quantize",
    "equalize_channels": "kdprune.quantize",
    "cluster_weights": "kdprune.quantize",
    "strip_clustering": "kdprune.quantize",
    "convert_tflite": "kdprune.tflite",
    "check_tflite": "kdprune.tflite",
    "inspect_tflite": "kdprune.tflite",
    "slim_tflite": "kdprune.tflite",
    "write_kit": "kdprune.kit",
    "check_fit": "kdprune.kit",
    "diagnose": "kdprune.doctor",
    "evaluate_model": "kdprune.evaluate",
    "measure_latency": "kdprune.benchmark",
    "register_loss": "kdprune.distill",
    "register_dataset": "kdprune.data",
    "register_stage": "kdprune.stages",
}

# Former names of public ones, with what they are called now.
_FORMER: dict[str, str] = {"fold_batch_norms": "fold_batch_norm"}

__all__ = [*_PUBLIC, "__version__"]


def _load(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kdprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


__getattr__ = former_names(__name__, _FORMER, _load)


def __dir__():
    return sorted(__all__)
