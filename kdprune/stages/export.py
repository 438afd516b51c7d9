"""Writes `.tflite` files, each past the export gate."""

from __future__ import annotations

import pathlib
from typing import Any, Literal

import numpy as np
import pydantic

from kdprune import _io
from kdprune._log import logger
from kdprune.stages.base import (
    FILES,
    FLOAT_MODEL,
    QUANTIZED_MODEL,
    Node,
    Result,
    Run,
    Stage,
)
from kdprune.stages.settings import Names, Share

# Scored on the kernels that are slow: those of reference take a tenth of a second
# for an image and a model of 12 M multiplications.
_KERNEL_IMAGES = 100


class Export(Stage):
    """Writes and checks `.tflite` files."""

    kind: Literal["export"]
    from_: Names = pydantic.Field(alias="from")
    """The stages whose models become files."""
    max_disagreement: Share = 0.05
    """Share of validation images on which a file may predict another class than its
    Keras model."""
    max_drop: Share = 0.01
    """Accuracy that a file may lose, as a share of images: it is refused if it
    surely loses more."""
    slim: bool = True
    """Store what is equal in a file once and its tensors' names beside it, if that is
    proven to change no output."""

    omit_if_default = ("slim",)
    accepts = {"from": (FLOAT_MODEL, QUANTIZED_MODEL)}
    gives = FILES
    role = "export"

    def draws(self) -> bool:
        return False

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Writes the `.tflite` files of every model, each past the gate."""
        from kdprune import evaluate, tflite
        from kdprune.stages import fitting
        from kdprune.tflite.convert import is_quantization_aware

        files, written = {}, []
        for parent in node.all_parents():
            model = fitting.load_node(run, parent)
            scores = evaluate.predict(model, run.dataset.validation.images)
            for dtype, arguments in parent.settings.conversions(run, parent):
                name = f"{parent.stage}.{dtype}.tflite"
                logger.info("writing %s", name)
                content = tflite.convert_tflite(model, dtype, **arguments)
                files[name] = self._pass_gate(
                    run,
                    folder / name,
                    content,
                    scores,
                    float_layers=arguments.get("float_layers", ()),
                    strict=is_quantization_aware(model),
                )
                written.append(name)
                if self.slim:
                    figures = files[name]
                    figures["slimmed"], names = self._slim(folder / name)
                    written += names
        return Result({"files": files}, written)

    def _slim(self, path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
        """Makes a file smaller; returns what that was worth and the names' file."""
        from kdprune import tflite

        names = tflite.tensor_names(path)
        slimmed = tflite.slim_tflite(path)
        figures = {"bytes_before": slimmed.before, "bytes": slimmed.after}
        if slimmed.reason is not None:
            return {**figures, "kept": slimmed.reason}, []
        _io.write_file(path, slimmed.content)
        place = tflite.write_names(path, names)
        return {**figures, "equal_on_inputs": slimmed.proof}, [place.name]

    def _pass_gate(
        self,
        run: Run,
        path: pathlib.Path,
        content: bytes,
        keras_scores: np.ndarray,
        **asked: Any,
    ) -> dict[str, Any]:
        """Puts a file in its place if it passes the gate; returns the figures."""
        from kdprune import evaluate, tflite

        validation = run.dataset.validation
        partial = path.with_name(f"partial.{path.name}")
        _io.write_file(partial, content)

        def score(resolver, count=None):
            return evaluate.predict(
                partial, validation.images[:count], resolver=resolver
            )

        try:
            scores = {"xnnpack": score("xnnpack")}
            figures = tflite.check_tflite(
                content,
                keras_scores,
                scores["xnnpack"],
                validation.labels,
                max_disagreement=self.max_disagreement,
                max_drop=self.max_drop,
                **asked,
            )
            slow = ("builtin", "reference")
            scores |= {name: score(name, _KERNEL_IMAGES) for name in slow}
            figures["kernels"] = tflite.compare_kernels(
                keras_scores, scores, self.max_disagreement
            )
            figures["xnnpack_leaves"] = tflite.xnnpack_leaves(content)
        except ValueError as error:
            partial.unlink()
            raise ValueError(f"{path.name} failed the export gate: {error}") from error
        partial.replace(path)
        return figures
