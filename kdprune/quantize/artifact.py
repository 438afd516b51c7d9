"""Saving and loading what a quantizing stage hands on: a model and its plan.

    base.keras   the float32 model
    weights.h5   QAT only: the trained weights and ranges of the wrapped model
    plan.json    how the two become an int8 file, with the files' SHA-256

Keras can't reload a QAT model from `.keras`; it is rebuilt from its float model and
the plan, and its weights are put back. PTQ has no Keras form at all: its artifact
is the float model and the plan. The plan is written last, and a folder is complete
when the plan's checksums fit, so that a killed save is never taken for a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
import tf_keras as keras

from kdprune import _io
from kdprune.models import hdf5
from kdprune.models.io import MAX_EXPANSION, load_model, save_model
from kdprune.quantize.qat import wrap_model

_BASE, _WEIGHTS, _PLAN = "base.keras", "weights.h5", "plan.json"
# The types that post-training quantization needs calibration images for.
_CALIBRATED = ("int8", "uint8", "int16x8")
# How a float model becomes the one whose weights are saved; plans of earlier versions
# have no number, and their models TFMOT's own form.
_FORM = 2
_FILES = {"qat": (_BASE, _WEIGHTS), "ptq": (_BASE,)}


def save_quantized(
    model: keras.Model,
    folder: str | os.PathLike,
    calibration: Mapping[str, Any] | None = None,
    conversion: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Saves a model and its conversion plan; `load_quantized` reads them back.

    Args:
        model: What `quantize_model` returned (QAT), or a float model that is to be
            quantized after training (PTQ).
        folder: Where to; made if missing. Files of other names are left alone.
        calibration: PTQ to integers only, and needed there: JSON-able account of the
            calibration images, such as `{"images": 500, "seed": 0}`.
        conversion: How the files are to be made: `dtypes`, names of `convert_tflite`
            (int8 and uint8 by default), and more arguments of it.

    Returns:
        The plan, as written.

    Raises:
        ValueError: If `model` is no model, or if `calibration` is missing where images
            are needed, or given where none are used: for QAT, float16 and dynamic.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "save_quantized expects a keras.Model, such as quantize_model gives. "
            f"Received: {model!r}"
        )
    origin = getattr(model, "quantized_from", None)
    conversion = {"dtypes": ["int8", "uint8"], **(conversion or {})}
    if origin is not None and origin.float_layers:
        conversion["float_layers"] = list(origin.float_layers)
    integers = bool(set(conversion["dtypes"]) & set(_CALIBRATED))
    if (origin is None and integers) != (calibration is not None):
        raise ValueError(
            "save_quantized expects what quantize_model returned, or a float model "
            "with calibration={'images': ..., 'seed': ...} where it is to become "
            f"{', '.join(_CALIBRATED)}. Received: "
            f"model {model.name!r} {'without' if origin is None else 'with'} an "
            f"origin in quantize_model, calibration={calibration}, "
            f"dtypes={conversion['dtypes']}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PLAN).unlink(missing_ok=True)
    if origin is None:
        plan: dict[str, Any] = {"method": "ptq", "calibration": calibration}
        save_model(model, folder / _BASE)
        (folder / _WEIGHTS).unlink(missing_ok=True)
    else:
        plan = {
            "method": "qat",
            "preserve_sparsity": origin.preserve_sparsity,
            "preserve_clusters": origin.preserve_clusters,
            "form": _FORM,
        }
        save_model(origin.base, folder / _BASE)
        with _io.writing(folder / _WEIGHTS) as path:
            model.save_weights(path, save_format="h5")
    plan["conversion"] = conversion
    plan["files"] = {name: _io.sha256(folder / name) for name in _FILES[plan["method"]]}
    _io.write_json(folder / _PLAN, plan)
    for digest in plan["files"].values():
        _io.vouch(digest)
    return plan


class _Conversion(pydantic.BaseModel, strict=True, extra="forbid"):
    """Arguments of `convert_tflite`, which checks their values."""

    dtypes: Annotated[list[str], pydantic.Field(min_length=1)]
    range_method: str = "minmax"
    ranges: str = "minmax"  # Its name in earlier versions.
    correct_bias: bool = False
    float_layers: list[str] = []
    input_range: Any = None
    head: str | None = None


class _Plan(pydantic.BaseModel, strict=True):
    """What a plan is gone by."""

    files: dict[str, str]
    conversion: _Conversion
    preserve_sparsity: bool = False
    preserve_clusters: bool = False
    form: int | None = None
    calibration: dict[str, Any] | None = None


def load_quantized(folder: str | os.PathLike) -> keras.Model:
    """Loads what `save_quantized` wrote; outputs are bit-equal to the saved model's.

    Args:
        folder: The folder given to `save_quantized`.

    Returns:
        A QAT model to train on or convert, or for PTQ the float model.

    Raises:
        FileNotFoundError: If the folder holds no finished artifact.
        ValueError: If its files are not the ones the plan was written for.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    base = load_model(folder / _BASE)
    if plan["method"] == "ptq":
        return base
    kept = plan["preserve_sparsity"], plan.get("preserve_clusters", False)
    if plan.get("form") == _FORM:
        in_float = plan["conversion"].get("float_layers", ())
        model = wrap_model(base, *kept, float_layers=in_float)
    else:
        model = wrap_model(base, *kept, as_before=True)
    weights = folder / _WEIGHTS
    try:
        hdf5.check(weights, MAX_EXPANSION * weights.stat().st_size)
        model.load_weights(str(weights))
    except (ValueError, LookupError, OSError) as error:
        raise ValueError(
            f"{weights}: its weights do not fit the model of {_BASE} "
            f"({_io.first_line(error)}): remove the folder, and run the quantizing "
            "stage again"
        ) from error
    return model


def read_plan(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads and checks the plan of an artifact, without loading the model.

    Args:
        folder: The folder given to `save_quantized`.

    Returns:
        Dict of `method` ("qat" or "ptq"), `preserve_sparsity` and
        `preserve_clusters` (QAT) or `calibration` (PTQ; None for types that need no
        images), `conversion` (`dtypes` and arguments of `convert_tflite`), and
        `files` (name to SHA-256).

    Raises:
        FileNotFoundError: If the folder holds no finished artifact.
        ValueError: If its files are not the ones the plan was written for.
    """
    path = Path(folder) / _PLAN
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no quantized model: {_PLAN} is missing, which is written "
            "last; run the quantizing stage again"
        )
    plan: dict[str, Any] = _io.read_object(path)
    if not plan:
        raise ValueError(f"{path} is no plan: run the quantizing stage again")
    if plan.get("method") not in list(_FILES):
        raise ValueError(
            f"{path}: method must be one of {', '.join(_FILES)}. "
            f"Received: {plan.get('method')!r}"
        )
    try:
        _Plan.model_validate(plan)
    except pydantic.ValidationError as error:
        (first, *_) = error.errors()
        raise ValueError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}: run the "
            "quantizing stage again"
        ) from error
    for name in _FILES[plan["method"]]:
        file = path.parent / name
        if not file.is_file() or _io.sha256(file) != plan["files"].get(name):
            raise ValueError(
                f"{path.parent / name} is not the file {_PLAN} was written for: "
                "run the quantizing stage again"
            )
    return plan
