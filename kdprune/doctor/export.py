"""The int8 file of a model as it is, and what is in it."""

from __future__ import annotations

import time
from typing import Any

import tf_keras as keras
from numpy.typing import NDArray

from kdprune.doctor.findings import Obstacle
from kdprune.intake import Head
from kdprune.tflite import inspect_tflite
from kdprune.tflite.convert import draft_int8
from kdprune.tflite.coverage import xnnpack_leaves
from kdprune.tflite.inspection import CONVERSIONS

_INT8 = "post-training int8"


def export(
    model: keras.Model, head: Head, images: NDArray
) -> tuple[bytes | None, dict[str, Any], list[Obstacle]]:
    """Converts a model and reads the file.

    Its ranges come from a few images, or from noise: what it scores means nothing, but
    its operators are those of a file made with care.

    Args:
        model: Of pixels in [0, 1], giving logits.
        head: What its outputs mean.
        images: uint8, `(n, height, width, channels)`.

    Returns:
        `(content, facts, obstacles)`; None and an empty dict where it does not
        convert.
    """
    started = time.process_time()
    try:
        ends_in = None if head.activation == "none" else head.activation
        content = draft_int8(model, images[:1], ends_in)
    except ValueError as error:
        return None, {}, [Obstacle(_INT8, "", str(error))]
    figures = inspect_tflite(content)
    in_float = [op for op in figures["float_ops"] if op["op"] not in CONVERSIONS]
    layers = list(dict.fromkeys(op["layer"] or op["tensor"] for op in in_float))
    obstacles, leaves = [], []
    try:
        leaves = xnnpack_leaves(content)
    except ValueError as error:
        remedy = "a file with ranges of real images may; the export gate tells"
        obstacles.append(Obstacle(_INT8, "", f"as it is, {error}", remedy, fatal=False))
    facts = {
        "bytes": len(content),
        "ops": figures["ops"],
        "float_layers": layers,
        "peak_activation_bytes": figures["peak_activation_bytes"],
        "xnnpack_leaves": leaves,
        "not_on_gpu": _not(figures, "gpu"),
        "not_on_micro": _not(figures, "micro"),
        "seconds": time.process_time() - started,
    }
    for layer in layers:
        ops = [op["op"] for op in in_float if (op["layer"] or op["tensor"]) == layer]
        obstacles.append(
            Obstacle(
                _INT8,
                layer,
                f"it stays in float ({', '.join(dict.fromkeys(ops))}): int8 has no "
                "operator for it",
                "replace it, or allow it: float_layers in Python and in a recipe",
            )
        )
    return content, facts, obstacles


def _not(figures: dict[str, Any], by: str) -> list[str]:
    return [f"{r['op']} ({r['type']})" for r in figures["operators"] if not r[by]]
