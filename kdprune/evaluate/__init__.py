"""Predictions, and what they say: accuracy, calibration, agreement, comparison."""

from kdprune.evaluate.compare import (
    agreement,
    compare_predictions,
    describe_comparison,
)
from kdprune.evaluate.evaluation import Evaluation, check_outputs, evaluate_model
from kdprune.evaluate.metrics import score
from kdprune.evaluate.prediction import predict, predict_for_labels, reorder_scores

__all__ = [
    "Evaluation",
    "agreement",
    "check_outputs",
    "compare_predictions",
    "describe_comparison",
    "evaluate_model",
    "predict",
    "predict_for_labels",
    "reorder_scores",
    "score",
]
