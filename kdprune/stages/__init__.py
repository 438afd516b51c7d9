"""What each kind of stage does: rooms put together, files written, figures returned.

Each function takes the run, its node and its folder, and returns `(results,
outputs)`: JSON-able figures for the record, and the files that others build on,
relative to the folder.
"""

import pathlib

from kdprune import distill, prune
from kdprune.fitting import load_fitting, soft_losses_of
from kdprune.models.factories import check_model_arguments
from kdprune.stages.compress import (
    measure_sensitivity,
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
from kdprune.stages.quantize import cluster_weights, quantize_model

__all__ = ["STAGES", "check", "plan_channels"]

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
        importance = getattr(node.settings, "importance", None)
        if importance is not None and importance not in prune.IMPORTANCES:
            raise ValueError(
                f"{key}.importance: expected one of {', '.join(prune.IMPORTANCES)}, "
                f"got {importance!r}"
            )
        count = getattr(node.settings, "calibration", None)
        if count is not None and count > len(run.dataset.train):
            raise ValueError(
                f"{key}.calibration: expected at most {len(run.dataset.train)} (the "
                f"training images), got {count}"
            )
        try:
            losses = distill.as_soft_losses(soft_losses_of(node.settings))
        except ValueError as error:
            raise ValueError(f"{key}.losses: {error}") from error
        teachers = getattr(node.settings, "teacher", None)
        if any(loss.of_features for loss in losses) and not isinstance(teachers, str):
            raise ValueError(
                f"{key}.losses: losses of features need one `teacher` in the loop, "
                f"since only logits are averaged or stored, got {teachers or 'none'}"
            )
