"""What each kind of stage does: rooms put together, files written, figures returned.

Each function takes the run, its node and its folder, and returns `(results,
outputs)`: JSON-able figures for the record, and the files that others build on,
relative to the folder.
"""

import pathlib

from kdprune import prune
from kdprune.fitting import load_fitting
from kdprune.models.factories import check_model_arguments
from kdprune.stages.compress import (
    importance_of,
    measure_sensitivity,
    plan_blocks,
    plan_channels,
    prune_blocks,
    prune_channels,
    prune_weights,
)
from kdprune.stages.learn import load, soft_labels, train
from kdprune.stages.measure import (
    evaluate_models,
    export_files,
    write_kit,
    write_report,
)
from kdprune.stages.quantize import (
    check_quantization,
    cluster_weights,
    quantize_model,
)
from kdprune.stages.teaching import check_teaching

__all__ = ["PLANS", "STAGES", "check"]

STAGES = {
    "train": train,
    "load": load,
    "soft_labels": soft_labels,
    "distill": train,
    "prune": prune_weights,
    "prune_channels": prune_channels,
    "prune_blocks": prune_blocks,
    "sensitivity": measure_sensitivity,
    "cluster": cluster_weights,
    "quantize": quantize_model,
    "export": export_files,
    "evaluate": evaluate_models,
    "kit": write_kit,
    "report": write_report,
}

# What a dry run can tell of a stage, by its kind.
PLANS = {"prune_channels": plan_channels, "prune_blocks": plan_blocks}


def check(nodes, run):
    """Raises `ValueError` for what would fail later, before anything is trained."""
    for node in nodes:
        key = f"stages.{node.stage}"
        model = getattr(node.settings, "model", None)
        if model is not None and model.name:
            try:
                check_model_arguments(model.name, model.model_extra)
            except ValueError as error:
                raise ValueError(f"{key}.model: {error}") from error
        for path in node.settings.files():
            if not pathlib.Path(path).is_file():
                raise FileNotFoundError(
                    f"{key}: expected a model at {path}: none there"
                )
            load_fitting(path, run.dataset)
        if hasattr(node.settings, "importance"):
            importance, _ = importance_of(node.settings)
            if importance not in prune.IMPORTANCES:
                raise ValueError(
                    f"{key}.importance: expected one of "
                    f"{', '.join(prune.IMPORTANCES)}, got {importance!r}"
                )
        slimming = getattr(getattr(node.settings, "training", None), "slimming", None)
        if slimming and node.kind not in ("train", "distill"):
            raise ValueError(
                f"{key}.training.slimming: expected in a train or distill stage, whose "
                f"channels are cut by bn_scale later, got it in a {node.kind} stage"
            )
        count = getattr(node.settings, "calibration", None)
        if count is not None and count > len(run.dataset.train):
            raise ValueError(
                f"{key}.calibration: expected at most {len(run.dataset.train)} (the "
                f"training images), got {count}"
            )
    check_teaching(nodes, run)
    check_quantization(nodes, run)
