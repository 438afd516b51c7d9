"""The public names, for editors and type checkers: they are loaded on first use."""

from kdprune.benchmark import measure_latency as measure_latency
from kdprune.compression import compress as compress
from kdprune.data import load_dataset as load_dataset
from kdprune.data import register_dataset as register_dataset
from kdprune.distill import Distiller as Distiller
from kdprune.distill import distillation_loss as distillation_loss
from kdprune.distill import register_loss as register_loss
from kdprune.doctor import diagnose as diagnose
from kdprune.evaluate import evaluate_model as evaluate_model
from kdprune.kit import check_fit as check_fit
from kdprune.kit import write_kit as write_kit
from kdprune.models import build_model as build_model
from kdprune.models import count_macs as count_macs
from kdprune.models import load_model as load_model
from kdprune.models import register_model as register_model
from kdprune.models import save_model as save_model
from kdprune.models import take_model as take_model
from kdprune.prune import plan_channels as plan_channels
from kdprune.prune import prune_channels as prune_channels
from kdprune.prune import prune_magnitude as prune_magnitude
from kdprune.prune import recalibrate_batch_norm as recalibrate_batch_norm
from kdprune.prune import register_importance as register_importance
from kdprune.prune import register_layer_rule as register_layer_rule
from kdprune.prune import remove_blocks as remove_blocks
from kdprune.prune import strip_pruning as strip_pruning
from kdprune.quantize import cluster_weights as cluster_weights
from kdprune.quantize import equalize_channels as equalize_channels
from kdprune.quantize import fold_batch_norm as fold_batch_norm
from kdprune.quantize import quantize_model as quantize_model
from kdprune.quantize import strip_clustering as strip_clustering
from kdprune.stages import register_stage as register_stage
from kdprune.tflite import check_tflite as check_tflite
from kdprune.tflite import convert_tflite as convert_tflite
from kdprune.tflite import inspect_tflite as inspect_tflite
from kdprune.tflite import slim_tflite as slim_tflite

__version__: str
