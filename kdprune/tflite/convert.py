"""Conversion of Keras models to `.tflite`."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray

from kdprune import _io
from kdprune._former import former_arguments
from kdprune._graph import (
    check_repeatable,
    final_activation,
    head_of,
    is_graph_model,
    named_layers,
)
from kdprune._registry import suggesting
from kdprune.images import as_float, spread
from kdprune.intake import (
    ByteInput,
    for_bytes,
    select_output,
    split_input,
    to_unit_range,
)
from kdprune.intake.file_input import UNIT_INPUT, for_floats
from kdprune.intake.pixels import Given
from kdprune.models.io import open_model
from kdprune.tflite.aware import (
    behind_input,
    fit_for_file,
    is_quantization_aware,
)
from kdprune.tflite.calibration import (
    RANGE_METHODS,
    check_float_layers,
    narrow,
    observe,
    quantize_calibrated,
    quantize_wide,
    sample_values,
    widen,
)
from kdprune.tflite.format import scale_input
from kdprune.tflite.gate import check_content
from kdprune.tflite.layers import compare_layers, correct_biases
from kdprune.tflite.norms import limit_norms

DTYPES = ("float32", "float16", "dynamic", "int16x8", "int8", "uint8")
_EIGHT_BIT = ("int8", "uint8")
_CALIBRATED = ("int16x8", *_EIGHT_BIT)
_INT8 = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
_INT16X8 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
_COMPARED = 50  # Images by which layers are compared: thousands of values each.


@former_arguments(ranges="range_method")
@suggesting
def convert_tflite(
    model: keras.Model | str | os.PathLike,
    dtype: str = "float32",
    calibration: ArrayLike | None = None,
    *,
    range_method: str = "minmax",
    float_layers: Sequence[str] = (),
    correct_bias: bool = False,
    input_range: Given | None = None,
    head: str | None = None,
) -> bytes:
    """Converts a model to a `.tflite` file that scores one image at a time.

    The file takes an image `(1, height, width, channels)` and returns probabilities
    `(1, units)`. What makes them of scores is kept, or put behind logits: softmax, for
    one of several classes; sigmoid with `head="sigmoid"`, for labels of which several
    may apply; and always sigmoid for a single unit, which stays one: `(1, 1)`, the
    probability of the second of two classes.
    int8 and uint8 files compute in 8-bit integers throughout, input and output
    included, and hold the same weights; uint8 takes an image's bytes as they are
    (Android), int8 the same bytes minus 128 (microcontrollers). The input has the
    scale 1/255, the output 1/256; zero points are 0 (uint8) and -128 (int8).

    The other types lose less accuracy and save fewer bytes. "float16": 16-bit weights,
    computation in float32. "dynamic": 8-bit weights (of tensors of 1,024 values and
    more), float32 activations that are quantized where a convolution or dense layer
    takes them. "int16x8": 8-bit weights and 16-bit activations, input and output
    included (scale 1/32767 and 1/32768, zero point 0); not every device runs it.

    Reference: Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 2.

    Args:
        model: A float32 `tf_keras` model, images in [0, 1] in, logits or
            probabilities out; or what `quantize_model` returned; or the path of a
            `.keras` or `.h5` file or a SavedModel's folder. A Keras file's model is
            not compared here with the original, see `take_model(path, compare=True)`.
        dtype: One of `DTYPES`.
        calibration: Images for post-training quantization, uint8 or float in
            [0, 1], shape `(n, height, width, channels)`: needed for a float model
            to become int8, uint8 or int16x8, and for nothing else. They should be
            as dark, bright and varied as in use: inside the network, what is beyond
            them is clipped. The input's own range is [0, 1] whatever they are.
        range_method: How the quantized range of each activation follows from the range
            observed on the images (post-training int8 and uint8): "minmax" is all of
            it, "percentile" leaves out the outer 0.01 % at either end, "mse" clips to
            the least mean squared error. A network with rare, large activations gains
            from the latter two.
        float_layers: Names of layers to leave in float, int8 and uint8 only: the
            most sensitive layers of `layer_report`. Such a file needs a runtime with
            float kernels, and `check_tflite` the same names. Those of a
            quantization-aware model are chosen in `quantize_model`.
        correct_bias: Subtract each channel's mean error from its bias (post-training
            int8 and uint8).
        input_range: What the model takes for black and white, such as (0, 255), or
            another form that `take_model` knows. By default what stands at the front
            of the model tells it, a `Rescaling(1 / 255)` bytes, else it is [0, 1].
        head: What makes probabilities of the model's scores, "softmax" or "sigmoid".
            By default what the model ends in; of logits, softmax for several units
            and sigmoid for a single one.

    Returns:
        The content of the file.

    Raises:
        ValueError: If the arguments don't fit together, or the model does not
            convert: then with what the converter said.
        RefusedFile: If the file has operators in float that were not asked for, or
            the runtime does not run it. A `ValueError`. Whether its scores are right
            is for `check_tflite` to say, of images and labels.
    """
    if isinstance(model, str | os.PathLike):
        model = open_model(model)
    aware = is_quantization_aware(model)
    _check_model(model, dtype)
    head = head_of(model, f"model {model.name!r}", head)
    _check_plan(dtype, aware, calibration)
    if aware:
        _check_chosen(model, float_layers)
        float_layers = ()
    _check_choices(dtype, aware, range_method, float_layers, correct_bias)
    if not aware and dtype in _EIGHT_BIT:
        assert calibration is not None  # Checked above.
        return Calibration(model, calibration, input_range, head).convert(
            dtype,
            range_method=range_method,
            float_layers=float_layers,
            correct_bias=correct_bias,
        )
    model = _in_unit_range(model, aware, input_range)
    images = None
    if not aware:
        model = for_floats(for_bytes(model) if dtype == "int16x8" else model)
        if dtype == "int16x8":
            images = _as_taken(model, calibration)
    with _converting(model, dtype), fit_for_file(model):
        converter = _new_converter(model, head)
        if images is not None:
            converter.target_spec.supported_ops = [_INT16X8]
            calibrated = observe(converter, images, UNIT_INPUT.bounds)
            content = quantize_wide(widen(calibrated))
        else:
            _set_precision(converter, dtype)
            content = bytes(converter.convert())
    if not aware:
        check_content(content)
        return content
    front = behind_input(model)
    content = scale_input(content, front.factor)
    origin = getattr(model, "quantized_from", None)
    in_float = getattr(origin, "float_layers", ())
    check_content(content, in_float, (front.input or UNIT_INPUT).bounds)
    return content


class Calibration:
    """What images show of a float model's ranges, to make several 8-bit files of.

    Showing them to the model takes most of a conversion's time: it is done once, when
    the first file is made that needs it. Every file is what `convert_tflite` makes.

    Args:
        model: As for `convert_tflite`, not quantization-aware.
        calibration: As there.
        input_range: As there.
        head: As there.

    Raises:
        ValueError: If they don't fit.
    """

    def __init__(
        self,
        model: keras.Model,
        calibration: ArrayLike,
        input_range: Given | None = None,
        head: str | None = None,
    ) -> None:
        _check_model(model, "int8")
        self._head = head_of(model, f"model {model.name!r}", head)
        _check_plan("int8", is_quantization_aware(model), calibration)
        self.model = for_bytes(to_unit_range(model, input_range))
        # What the files' operators compute, behind what their input says.
        self._behind, self._input = split_input(self.model)
        self._calibration = calibration
        self._narrowed: dict[str, bytes] = {}  # By method.

    def convert(
        self,
        dtype: str = "int8",
        *,
        range_method: str = "minmax",
        float_layers: Sequence[str] = (),
        correct_bias: bool = False,
    ) -> bytes:
        """Makes an int8 or uint8 file; arguments and errors are `convert_tflite`'s."""
        _check_choices(dtype, False, range_method, float_layers, correct_bias)
        calibrated = self.with_ranges(range_method)
        check_float_layers(calibrated, float_layers)
        with _converting(self.model, dtype):
            content = quantize_calibrated(calibrated, dtype, float_layers)
            if correct_bias:
                verified = quantize_calibrated(calibrated, verify=True)
                content = correct_biases(
                    content, compare_layers(verified, self._some_images())
                )
        check_content(content, float_layers, self._input.bounds)
        return content

    def _some_images(self) -> NDArray:
        return self._images[spread(len(self._images), _COMPARED)]

    def report(
        self, images: ArrayLike | None = None, range_method: str = "minmax"
    ) -> list[dict[str, Any]]:
        """The error of each layer: `layer_report`'s."""
        compared = (
            self._some_images()
            if images is None
            else self._input.apply(as_float(images, self.model.input_shape[1:]))
        )
        calibrated = self.with_ranges(range_method)
        with _converting(self.model, "int8"):
            verified = quantize_calibrated(calibrated, verify=True)
            return compare_layers(verified, compared)

    def with_ranges(self, range_method: str) -> bytes:
        """A float file with these ranges noted, for `quantize_calibrated`."""
        if range_method not in self._narrowed:
            found = self._observed
            with _converting(self.model, "int8"):
                if range_method != "minmax":
                    found = narrow(found, self._values, range_method)
                self._narrowed[range_method] = widen(found)
        return self._narrowed[range_method]

    @functools.cached_property
    def _observed(self) -> bytes:
        with _converting(self.model, "int8"):
            converter = _new_converter(self._behind, self._head)
            found = observe(converter, self._images, self._input.bounds)
            return limit_norms(found, self._images)

    @functools.cached_property
    def _images(self) -> NDArray[np.float32]:
        return _as_taken(self.model, self._calibration, self._input)

    @functools.cached_property
    def _values(self) -> dict[int, NDArray]:
        return sample_values(self._observed, self._images)


def draft_int8(
    model: keras.Model, calibration: ArrayLike, head: str | None = None
) -> bytes:
    """An int8 file to look at: operators and weights as `convert_tflite` makes them.

    Several times quicker, since the model is not saved on the way. The file has no
    signature, which some apps call it by, and its ranges are those of the images alone,
    so that the bytes of an image are not what it takes.

    Args:
        model: As for `convert_tflite`.
        calibration: As there; one image will do.
        head: As there.

    Returns:
        The content of the file.

    Raises:
        ValueError: As `convert_tflite` does.
    """
    _check_model(model, "int8")
    head = head_of(model, f"model {model.name!r}", head)
    images = as_float(calibration, tuple(model.input_shape[1:]), "calibration images")
    model, taken = split_input(for_bytes(to_unit_range(model)))
    images = taken.apply(images)
    with _converting(model, "int8"):
        converter = _new_converter(model, head)
        converter.experimental_lower_to_saved_model = False
        _set_precision(converter, "int8", images)
        return converter.convert()


@former_arguments(ranges="range_method")
def layer_report(
    model: keras.Model,
    calibration: ArrayLike,
    images: ArrayLike | None = None,
    range_method: str = "minmax",
    head: str | None = None,
) -> list[dict[str, Any]]:
    """Measures each layer's error in post-training int8, to find the most sensitive.

    Args:
        model: A float32 `tf_keras` model, as for `convert_tflite`.
        calibration: Images that ranges are taken from, as there.
        images: Images to measure on, likewise; the first 50 calibration images by
            default.
        range_method: As there.
        head: As there.

    Returns:
        List of dicts in the order of execution, JSON-able, which
        `kdprune.tflite.layers.compare_layers` describes: `layer`, `op`, `sqnr_db`,
        `rmse_over_scale`, `saturation`, quantized and observed ranges. A plot of
        `sqnr_db` by `layer` shows the most sensitive one.

    Raises:
        ValueError: If the arguments don't fit, or the model does not convert.
    """
    if is_quantization_aware(model):
        raise ValueError(
            "layer_report expects a float model, whose layers it compares to their "
            f"int8 form. Received: the quantization-aware {model.name!r}"
        )
    _check_model(model, "int8")
    head = head_of(model, f"model {model.name!r}", head)
    _check_choices("int8", False, range_method, (), False)
    calibrated = Calibration(model, calibration, head=head)
    return calibrated.report(images, range_method)


def _new_converter(model: keras.Model, head: str) -> tf.lite.TFLiteConverter:
    """A converter of the model with its head, for one image at a time."""
    logits = not final_activation(model)[0]
    probabilities = tf.nn.softmax if head == "softmax" else tf.sigmoid
    front = behind_input(model)

    # Autograph has nothing to translate here, and would leave files in /tmp.
    @tf.function(autograph=False)
    def predict(image):
        if front.input is not None:
            low, high = (end / front.factor for end in front.input.bounds)
            image = tf.quantization.fake_quant_with_min_max_args(image, low, high)
        scores = front.behind(image, training=False)
        return {"scores": probabilities(scores) if logits else scores}

    image = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="image")
    function = predict.get_concrete_function(image)
    # In place of the model: Keras would trace each of its layers several times more,
    # for a SavedModel that the converter has no use for.
    holder = tf.Module()
    holder.kept = function.graph.variables
    return tf.lite.TFLiteConverter.from_concrete_functions([function], holder)


def input_range_of(model: keras.Model) -> tuple[float, float]:
    """What black and white are in an 8-bit file of a model.

    Args:
        model: As for `convert_tflite`.

    Returns:
        `(low, high)`: (0, 1), or of a model that starts with the arithmetic of another
        range the nearest to it in which a byte is 0.
    """
    if is_quantization_aware(model):
        taken = behind_input(model).input or UNIT_INPUT
    else:
        taken = split_input(for_bytes(to_unit_range(model)))[1]
    return taken.bounds


def meant_by_bytes(model: keras.Model) -> keras.Model:
    """The model that an 8-bit file of this one is to agree with.

    Where 0 lies between two bytes, as of [-1, 1], a file takes pixels that are half a
    gray level off: the scores to hold its own against are those of the same pixels.

    Args:
        model: As for `convert_tflite`.

    Returns:
        A model that takes pixels in [0, 1]; mostly the same one. A quantization-aware
        one is so already.
    """
    if is_quantization_aware(model):
        return model
    return for_bytes(to_unit_range(model))


def _set_precision(
    converter: tf.lite.TFLiteConverter, dtype: str, images: NDArray | None = None
) -> None:
    if dtype == "float32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
        return
    if dtype == "dynamic":
        return
    ends = tf.dtypes.as_dtype(dtype)
    converter.inference_input_type = converter.inference_output_type = ends
    # With the ranges of a QAT model the converter neither wants calibration images
    # nor takes this restriction without them; the gate looks for float ops.
    if images is not None:
        converter.target_spec.supported_ops = [_INT8]
        converter.representative_dataset = lambda: ([image[None]] for image in images)


def _in_unit_range(
    model: keras.Model, aware: bool, input_range: Given | None
) -> keras.Model:
    if not aware:
        return to_unit_range(model, input_range)
    if input_range is not None:
        raise ValueError(
            "input_range is for a float model: give it to take_model, and the model "
            "that it returns to quantize_model. Received: the quantization-aware "
            f"{model.name!r}"
        )
    return model


def _as_taken(
    model: keras.Model, calibration: ArrayLike | None, taken: ByteInput = UNIT_INPUT
) -> NDArray[np.float32]:
    """Calibration images as the model takes them."""
    assert calibration is not None  # Checked before.
    images = as_float(calibration, model.input_shape[1:], "calibration images")
    return images if taken == UNIT_INPUT else taken.apply(images)


def _check_model(model: Any, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype must be one of {', '.join(DTYPES)}. Received: {dtype!r}"
        )
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            "convert_tflite expects a model: load the file by kdprune.load_model. "
            f"Received: the path {os.fspath(model)!r}"
        )
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "convert_tflite expects a built tf_keras (Keras 2) model. "
            f"Received: {type(model).__module__}.{type(model).__name__}"
        )
    if is_graph_model(model):
        select_output(model, None)  # Says which there are, if several.
        check_repeatable(model)
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "convert_tflite expects one image input of fixed height, width and "
            f"channels. Received: input shape {shape}"
        )
    for path, layer in named_layers(model):
        if layer.compute_dtype != "float32":
            raise ValueError(
                "convert_tflite expects a model that computes in float32: rebuild it "
                "by kdprune.models.precision.cast_model(model, 'float32'). Received: "
                f"layer {path!r} in {layer.compute_dtype}"
            )


def _check_plan(dtype: str, aware: bool, calibration: ArrayLike | None) -> None:
    if aware and dtype not in _EIGHT_BIT:
        raise ValueError(
            "a quantization-aware model converts to int8 and uint8: for other types "
            f"convert the float model. Received: dtype={dtype!r}"
        )
    if dtype in _CALIBRATED and not aware and calibration is None:
        raise ValueError(
            f"a float model needs calibration images to become {dtype}: pass about 500 "
            "training images. Received: calibration=None"
        )
    if calibration is not None and (aware or dtype not in _CALIBRATED):
        kind = "quantization-aware" if aware else "float"
        raise ValueError(
            "calibration images are for a float model and an integer dtype "
            f"({', '.join(_CALIBRATED)}). Received: a {kind} model, dtype={dtype!r}"
        )


def _check_chosen(model: Any, float_layers: Sequence[str]) -> None:
    """Raises unless a quantization-aware model was made with these layers in float."""
    origin = getattr(model, "quantized_from", None)
    chosen = getattr(origin, "float_layers", ())
    if float_layers and sorted(float_layers) != sorted(chosen):
        raise ValueError(
            "float_layers of a quantization-aware model are chosen in quantize_model: "
            f"expected none here, or {', '.join(chosen) or 'none'}. "
            f"Received: {float_layers!r}"
        )


def _check_choices(
    dtype: str,
    aware: bool,
    range_method: str,
    float_layers: Sequence[str],
    correct_bias: bool,
) -> None:
    if range_method not in RANGE_METHODS:
        raise ValueError(
            f"range_method must be one of {', '.join(RANGE_METHODS)}. "
            f"Received: {range_method!r}"
        )
    if isinstance(float_layers, str):
        raise ValueError(
            f"float_layers must be a list of names. Received: {float_layers!r}"
        )
    chosen = range_method != "minmax" or float_layers or correct_bias
    if chosen and (aware or dtype not in _EIGHT_BIT):
        kind = "quantization-aware" if aware else "float"
        raise ValueError(
            "range_method, float_layers and correct_bias are for a float model and an "
            f"8-bit dtype. Received: a {kind} model, dtype={dtype!r}"
        )


@contextlib.contextmanager
def _converting(model: keras.Model, dtype: str) -> Iterator[None]:
    """Makes one line of what the converter raises."""
    try:
        with warnings.catch_warnings():
            # A quantization-aware model has its ranges, whatever the converter says.
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")
            yield
    except Exception as error:  # The converter's kinds have no common base.
        raise ValueError(
            f"model {model.name!r} does not convert to {dtype}: {_first_error(error)}"
        ) from error


def _first_error(error: Exception) -> str:
    lines = str(error).splitlines()
    line = next((line for line in lines if "error:" in line), _io.first_line(error))
    return line.partition("error:")[2].strip() or line.strip()
