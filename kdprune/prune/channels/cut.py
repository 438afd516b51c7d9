"""Removing channels, in one step or in several with fine-tuning between them."""

from dataclasses import replace

from kdprune.prune.channels.choice import one_target
from kdprune.prune.channels.plan import plan_target
from kdprune.prune.recalibrate import recalibrate_batch_norm

_TARGETS = ("target_macs", "target_parameters", "target_bytes", "threshold")


def prune_channels(model, ratio=None, *, steps=1, fine_tune=None, **settings):
    """Removes channels: returns a new, physically smaller model.

    The weights that stay are carried over, names are kept, inputs and outputs are
    as they were. Before any recalibration the new model computes what the old one
    would if the removed channels were zero wherever they are used.

    Args:
        model: A built Functional or Sequential `tf_keras` model; left as it is.
        ratio: The share of channels to remove, in (0, 1), or give one of
            `target_macs`, `target_parameters`, `target_bytes`, `threshold`.
        steps: In how many steps to get there, each on the importances that the
            model has by then, and by the same factor; 1 with a threshold.
        fine_tune: `fine_tune(model)` trains the model in place; called between
            steps, not after the last.
        **settings: The target and what else `plan_channels` takes: `importance`,
            `scope`, `round_to`, `ignore`, `data`, `measure_bytes`, `sensitivity`
            (of the model before the first step). With `data`, batch normalization
            is recalibrated after each step.

    Returns:
        A `keras.Model` (`Sequential` if the model was), not compiled.

    Raises:
        ValueError: As `plan_channels` does.

    Example:
        >>> smaller = prune_channels(model, target_macs=6_000_000, data=images)
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is a whole number, at least 1. Received: {steps!r}")
    targets = {name: settings.pop(name) for name in _TARGETS if name in settings}
    target = one_target(ratio, targets)
    if target.kind == "threshold" and steps > 1:
        raise ValueError(
            "a threshold says at once which channels go: expected steps=1. "
            f"Received: {steps}; give a ratio or a target to get there in steps"
        )
    for step in range(1, steps + 1):
        target = replace(target, share=step / steps)
        plan, target = plan_target(model, target, **settings)
        model = plan.apply()
        if settings.get("data") is not None:
            recalibrate_batch_norm(model, settings["data"])
        if fine_tune is not None and step < steps:
            fine_tune(model)
    return model
