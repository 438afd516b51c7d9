"""Accuracy, agreement, size and latency, measured from the files themselves."""

from kdprune.evaluate.compare import (
    agreement,
    compare_predictions,
    describe_comparison,
)
from kdprune.evaluate.evaluation import Evaluation, evaluate_model
from kdprune.evaluate.latency import measure_latencies, measure_latency
from kdprune.evaluate.metrics import score
from kdprune.evaluate.prediction import predict
from kdprune.evaluate.size import describe_file
from kdprune.evaluate.tflite import open_interpreter, read_tflite

__all__ = [
    "Evaluation",
    "agreement",
    "compare_predictions",
    "describe_comparison",
    "describe_file",
    "evaluate_model",
    "measure_latencies",
    "measure_latency",
    "open_interpreter",
    "predict",
    "read_tflite",
    "score",
]
