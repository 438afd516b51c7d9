"""Quantization-aware models as files see them: their input, their least ranges.

A range that is empty, or a kernel whose steps are too fine for its bias, is nothing to
a Keras model. A file has to write it as integers: an int32 bias counts steps of input
times kernel, and kernels multiply by the ratio of steps. So both have a least size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import (
    is_graph_model,
    is_quantized_layer,
    named_layers,
    nodes,
    unwrapped,
)
from kdprune.intake import ByteInput, byte_input
from kdprune.intake.file_input import stated_range
from kdprune.intake.pixels import read_chain
from kdprune.tflite.calibration import MOVED, STEPS, around_zero, least_step

# Steps that a bias has at most, of 2**31, as the converter has it for float models.
_BIAS_STEPS = 2.0**30
# Steps of a kernel's products, at least, that make one of its output.
_FINEST = 2.0**-24
# Times a kernel it is nothing, and no 0, by which the converter divides.
_NOTHING = 1e-20


class Front(NamedTuple):
    """What of a model is behind the range of its pixels."""

    behind: keras.Model
    input: ByteInput | None = None
    factor: float = 1.0


def is_quantization_aware(model: Any) -> bool:
    """Whether `model` is wrapped for quantization-aware training."""
    if not isinstance(model, keras.Model):
        return False
    return any(is_quantized_layer(layer) for _, layer in named_layers(model))


def behind_input(model: keras.Model) -> Front:
    """What of a quantization-aware model is behind the range of its pixels.

    Its pixels in [0, 1] are brought to what the bytes stand for, which the file's input
    says, before anything is quantized; a float model is all behind.
    """
    chain = read_chain(model) if is_quantization_aware(model) else None
    if chain is None or not chain.calls:
        return Front(model)
    last = list(chain.calls)[-1]
    behind = keras.Model(last.outputs, model.outputs, name=model.name)
    return Front(behind, byte_input(stated_range(chain)), chain.factor)


def widen_ranges(model: keras.Model) -> None:
    """Gives every activation of a quantization-aware model its least range.

    One that is 0 on all images that ranges were taken from has none, and the runtime
    refuses such a file.

    Args:
        model: What `quantize_model` returned; its ranges are changed where they are
            smaller.
    """
    for variable, value in _Ranges(model).activations:
        variable.assign(value)


@contextlib.contextmanager
def fit_for_file(model: keras.Model) -> Iterator[None]:
    """Gives a quantization-aware model what its file needs, for as long as it is made.

    Activations have their least ranges, and kernels steps that are coarse enough for
    the bias to be an int32: of a channel whose BatchNormalization has a tiny gamma they
    would be too fine. What such a channel adds to its bias is rounded by less than a
    seventh of a step of the output.

    Args:
        model: What `quantize_model` returned, or a float model, which stays.
    """
    ranges = _Ranges(model) if is_quantization_aware(model) else None
    changes = [*ranges.activations, *ranges.kernels()] if ranges else []
    before = [variable.numpy() for variable, _ in changes]
    try:
        for variable, value in changes:
            variable.assign(value)
        yield
    finally:
        for (variable, _), value in zip(changes, before, strict=True):
            variable.assign(value)


class _Tensor(NamedTuple):
    """A tensor's steps: of what it was rounded to last, and of sums made since."""

    step: float
    sums: float
    kernel: _Kernel | None = None  # That made the sums, if they are not rounded yet.


class _Kernel:
    """A layer's kernel, and the normalization behind it."""

    def __init__(self, wrapper: Any, step: float) -> None:
        self.layer, self.input_step = wrapper.layer, step
        self.output_step = 0.0
        ((self.weight, _, self.ranges),) = wrapper._weight_vars
        self.norm: Any = None

    @property
    def factor(self) -> Any:
        """What the normalization multiplies each channel by."""
        if self.norm is None:
            return 1.0
        factor = (self.norm.moving_variance.numpy() + self.norm.epsilon) ** -0.5
        return factor * (self.norm.gamma.numpy() if self.norm.scale else 1.0)

    @property
    def bias(self) -> Any:
        bias = self.layer.bias.numpy() if self.layer.use_bias else 0.0
        if self.norm is None:
            return bias
        bias = (bias - self.norm.moving_mean.numpy()) * self.factor
        return bias + (self.norm.beta.numpy() if self.norm.center else 0.0)

    def steps(self) -> NDArray:
        """The kernel's own, of all of it or for each channel."""
        if "max_var" in self.ranges:
            return self.ranges["max_var"].numpy() / 127
        return np.abs(self.weight.numpy()).max() / 127

    def changes(self) -> Iterator[tuple[Any, Any]]:
        """`(variable, value)` of what is to be coarser."""
        if "max_var" not in self.ranges or not self.output_step:
            return  # The converter rounds it, and knows the bias.
        size, factor = self.ranges["max_var"].numpy(), np.abs(self.factor)
        if self.norm is not None and size.shape != factor.shape:
            return  # One range, and a factor for each channel.
        products = np.maximum(
            np.abs(self.bias) / _BIAS_STEPS, self.output_step * _FINEST
        )
        if self.norm is not None and self.norm.scale and (factor < _NOTHING).any():
            gamma = self.norm.gamma.numpy()
            yield self.norm.gamma, np.where(factor < _NOTHING, _NOTHING, gamma)
        least = 127 * products / (self.input_step * np.maximum(factor, _NOTHING))
        if not size.shape:
            least = np.max(least)
        if (size < least).any():
            size = np.maximum(size, least)
            yield self.ranges["min_var"], -size
            yield self.ranges["max_var"], size


class _Ranges:
    """Follows the steps of a quantization-aware model's tensors through its graph."""

    def __init__(self, model: keras.Model) -> None:
        front = behind_input(model)
        low, high = front.input.bounds if front.input else (0.0, 1.0)
        first = (high - low) / front.factor / STEPS
        self.activations: list[tuple[Any, Any]] = []
        self._kernels: list[_Kernel] = []
        self._follow(front.behind, [_Tensor(first, first)])

    def kernels(self) -> Iterator[tuple[Any, Any]]:
        for kernel in self._kernels:
            yield from kernel.changes()

    def _follow(self, model: keras.Model, given: list[_Tensor]) -> _Tensor:
        """The steps of a model's output, the coarsest of several."""
        known = {id(t): one for t, one in zip(model.inputs, given, strict=True)}
        for node in nodes(model):
            # What no tensor makes is a constant.
            taken = [known[id(t)] for t in node.keras_inputs] or [_Tensor(0.0, 0.0)]
            inner = is_graph_model(node.layer)
            found = (self._follow if inner else self._behind)(node.layer, taken)
            known |= dict.fromkeys(map(id, tf.nest.flatten(node.outputs)), found)
        outputs = [known[id(tensor)] for tensor in model.outputs]
        return max(outputs, key=lambda one: one.step)

    def _behind(self, wrapper: Any, given: list[_Tensor]) -> _Tensor:
        layer = unwrapped(wrapper)
        step = max(one.step for one in given)
        sums = max(one.sums for one in given)
        kernel = given[0].kernel if len(given) == 1 else None
        if isinstance(layer, _WITH_KERNEL) and getattr(wrapper, "_weight_vars", None):
            kernel = _Kernel(wrapper, step)
            self._kernels.append(kernel)
            sums *= float(kernel.steps().max())
        elif isinstance(layer, keras.layers.BatchNormalization) and kernel is not None:
            kernel.norm = layer
            size = np.broadcast_to(kernel.steps(), np.shape(kernel.factor))
            sums = step * float((size * np.abs(kernel.factor)).max())
        elif isinstance(layer, keras.layers.Multiply):
            sums = float(np.prod([one.sums for one in given]))
        elif kernel is None and not isinstance(layer, _SUMS):
            sums *= MOVED
        for low, high, variables in _quantizers(wrapper):
            rounded = (high - low) / STEPS
            least = least_step(rounded, step, sums)
            if variables is not None and least > rounded:
                ends = variables["min_var"], variables["max_var"]
                self.activations += zip(ends, around_zero(least), strict=True)
                rounded = least
            if kernel is not None:
                kernel.output_step, kernel = rounded, None
            step = sums = rounded
        return _Tensor(step, sums, kernel)


_layers = keras.layers
_WITH_KERNEL = (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.Dense)
_SUMS = (_layers.Add, _layers.Subtract)


def _quantizers(wrapper: Any) -> Iterator[tuple[float, float, dict | None]]:
    """`(low, high, variables)` of what rounds an output; fixed ones have none."""
    if hasattr(wrapper, "quantizer"):  # The one at the input.
        yield wrapper.quantizer.init_min, wrapper.quantizer.init_max, None
        return
    found: list[tuple[Any, Any]] = []
    for activation in getattr(wrapper, "_quantize_activations", ()):
        for when in ("pre", "post"):
            variables = getattr(activation, f"_{when}_activation_vars", None)
            if variables is not None:
                found.append((activation.quantizer, variables))
    outputs = getattr(wrapper, "_output_quantizers", ())
    if outputs:
        found.append((outputs[0], wrapper._output_quantizer_vars))
    for quantizer, variables in found:
        if variables is None:
            yield quantizer.init_min, quantizer.init_max, None
        else:
            low, high = (variables[f"{end}_var"].numpy() for end in ("min", "max"))
            yield float(low), float(high), variables
