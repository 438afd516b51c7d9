"""Removes channels (structured pruning)."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from kdprune.stages import base
from kdprune.stages.base import Node, Result, Run
from kdprune.stages.ranked import RanksChannels
from kdprune.stages.settings import Count, Name, Positive, Ratio, Training
from kdprune.stages.trained import Compressed

if TYPE_CHECKING:
    import tf_keras as keras

_TARGETS = ("ratio", "target_macs", "target_parameters", "target_bytes", "threshold")


class PruneChannels(Compressed, RanksChannels):
    """Removes channels, and trains the smaller model to recover."""

    kind: Literal["prune_channels"]
    ratio: Ratio | None = None
    """Share of channels to remove. Give one of `ratio`, the three targets and
    `threshold`."""
    target_macs: Count | None = None
    """Upper bound of MACs."""
    target_parameters: Count | None = None
    """Upper bound of parameters."""
    target_bytes: Count | None = None
    """Upper bound of the int8 file's bytes, slimmed if export stages do that."""
    threshold: Positive | None = None
    """Channels that score below this are removed."""
    scope: Literal["global", "per_cost", "local"] = "global"
    """`global`: the least important of the network; `per_cost`: the least important
    for each MAC or parameter saved; `local`: the same share of each group."""
    sensitivity: Name | None = None
    """A `sensitivity` stage of the same model, by which groups are weighed against
    each other."""
    steps: Count = 1
    """Steps in which the target is approached, each followed by all epochs of
    `training`."""
    training: Training
    """How the smaller model recovers."""

    accepts = {
        "from": Compressed.accepts["from"],
        "sensitivity": (base.SENSITIVITY,),
        "teacher": Compressed.accepts["teacher"],
        "soft_labels": Compressed.accepts["soft_labels"],
    }
    role = "prune"
    keeps_layers = True
    plans = ("from", "sensitivity")

    @pydantic.model_validator(mode="after")
    def _one_target(self) -> PruneChannels:
        if len(self.target()) != 1:
            raise ValueError(
                f"expected one of {', '.join(_TARGETS)}, got "
                f"{', '.join(self.target()) or 'none'}"
            )
        if self.threshold and self.steps > 1:
            raise ValueError(
                "`threshold` tells at once which channels are removed: expected "
                f"steps: 1, got {self.steps}"
            )
        if self.threshold and self.scope == "per_cost":
            raise ValueError(
                "`threshold` limits no cost that scope: per_cost could weigh: expected "
                "scope: global, or a ratio or a target"
            )
        if self.sensitivity and (self.scope != "global" or self.threshold):
            raise ValueError(
                "`sensitivity` weighs groups of channels against each other: expected "
                "scope: global and a ratio or a target, got "
                f"{'`threshold`' if self.threshold else f'scope: {self.scope}'}"
            )
        return self

    def target(self) -> dict[str, Any]:
        """How much to remove, as `prune.plan_channels` takes it."""
        given = {name: getattr(self, name) for name in _TARGETS}
        return {name: value for name, value in given.items() if value is not None}

    def check_recipe(self, name: str, recipe: Any) -> None:
        super().check_recipe(name, recipe)
        if self.sensitivity:
            measured = recipe.stages[self.sensitivity].from_
            if measured != self.from_:
                raise ValueError(
                    f"stages.{name}.sensitivity: expected that of {self.from_!r}, "
                    f"which is pruned, got that of {measured!r}"
                )

    def estimate(self, run: Run, node: Node) -> float:
        return super().estimate(run, node) * self.steps

    def plan(self, run: Run, node: Node) -> str:
        return str(self.channel_plan(run, node))

    def channel_plan(self, run: Run, node: Node) -> Any:
        """The `prune.ChannelPlan`, all its steps in one."""
        from kdprune import prune

        model, arguments = self._arguments(run, node)
        return prune.plan_channels(model, **arguments)

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Removes channels in steps, training what is left after each."""
        from kdprune import prune
        from kdprune.models import load_model
        from kdprune.stages import fitting
        from kdprune.stages.validation import validation_accuracy

        earlier: list[dict[str, Any]] = []

        def fine_tune(model):
            # Each step's training resumes by itself, in a folder of its own.
            step = folder / f"step-{len(earlier) + 1}"
            fitted, figures = fitting.fit_stage(run, node, step, lambda _: model)
            earlier.append(figures)
            model.set_weights(fitted.get_weights())

        model, arguments = self._arguments(run, node)
        smaller = prune.prune_channels(
            model, steps=self.steps, fine_tune=fine_tune, **arguments
        )
        pruned_accuracy = validation_accuracy(run)(smaller)
        fitted, figures = fitting.fit_stage(run, node, folder, lambda _: smaller)
        for key in ("epochs", "training_seconds"):
            figures[key] += sum(step[key] for step in earlier)
        figures["val_accuracy_cut"] = pruned_accuracy  # Before what is left recovers.
        result = fitting.save_outputs(fitted, folder, figures)
        saved = load_model(folder / base.MODEL)
        result.figures["channels_by_layer"] = _widths(model, saved)
        return result

    def _arguments(self, run: Run, node: Node) -> tuple[keras.Model, dict[str, Any]]:
        """The model that is pruned, and how, for `prune.prune_channels`."""
        from kdprune import _io, prune, tflite
        from kdprune.stages import fitting, sensitivity
        from kdprune.stages.validation import ranking_images

        exports = [one.settings for one in run.nodes if one.kind == "export"]
        slim = all(getattr(settings, "slim", True) for settings in exports)

        def measure_bytes(model):
            data = run.dataset
            images = data.calibration.images
            content = tflite.content_of(  # Its size is asked for, no more.
                lambda: tflite.convert_tflite(model, "int8", images, head=data.head)
            )
            return len(tflite.share_content(content) if slim else content)

        table = None
        if self.sensitivity:
            path = run.output(node.parent_of("sensitivity"), sensitivity.TABLE)
            try:
                table = prune.Sensitivity.from_dict(_io.read_object(path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}; run that stage again") from error
        return fitting.load_node(run, node.parent_of("from")), {
            **self.target(),
            "sensitivity": table,
            "importance": self.ranking(),
            "scope": self.scope,
            "round_to": self.round_to,
            "ignore": self.ignore,
            "data": ranking_images(run, self.own_seed),
            "measure_bytes": measure_bytes,
        }


def _widths(before: keras.Model, after: keras.Model) -> dict[str, list[int]]:
    """`{layer: [filters before, filters after]}` of the layers that were pruned."""
    was, now = _filters(before), _filters(after)
    return {name: [was[name], now[name]] for name in now if now[name] != was[name]}


def _filters(model: keras.Model) -> dict[str, int]:
    """How many outputs each layer has: convolutions `filters`, dense layers `units`."""
    found = {}
    for layer in model._flatten_layers(include_self=False):
        count = getattr(layer, "filters", None) or getattr(layer, "units", None)
        if count:
            found[layer.name] = int(count)
    return found
