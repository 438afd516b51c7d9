"""What a model file may contain: plain layers and functions, by name.

A layer is accepted when its class name is listed here *and* the module beside
it is the one that class lives in; registered names must not redirect it. Left
out on purpose: Lambda, TFSMLayer, the text layers (they open files named in the
configuration), and everything that calls methods by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import tf_keras as keras

from kdprune.intake.keras_layers import hard_sigmoid, hard_silu

# The package name kdprune's own layers are registered under.
OWN_PACKAGE = "kdprune>"

_LAYERS = """
    Activation Add AlphaDropout Average AveragePooling1D AveragePooling2D
    BatchNormalization CenterCrop Concatenate Conv1D Conv2D Conv2DTranspose
    Cropping2D Dense DepthwiseConv2D Dot Dropout ELU Embedding Flatten
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalMaxPooling1D GlobalMaxPooling2D GroupNormalization InputLayer
    LayerNormalization LeakyReLU MaxPooling1D MaxPooling2D Maximum Minimum
    MultiHeadAttention Multiply Normalization PReLU Permute RandomBrightness
    RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation
    RandomZoom ReLU RepeatVector Rescaling Reshape Resizing SeparableConv2D
    Softmax SpatialDropout2D Subtract ThresholdedReLU UnitNormalization
    UpSampling2D ZeroPadding2D
""".split()
_INITIALIZERS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal
    LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal
    VarianceScaling Zeros
""".split()
_REGULARIZERS = ["L1", "L2", "L1L2", "OrthogonalRegularizer"]
_CONSTRAINTS = ["MaxNorm", "MinMaxNorm", "NonNeg", "RadialConstraint", "UnitNorm"]
_ACTIVATIONS = frozenset(
    """
    elu exponential gelu hard_sigmoid leaky_relu linear log_softmax mish relu
    relu6 selu sigmoid silu softmax softplus softsign swish tanh
    """.split()
)
# TFOpLambda and SlicingOpLambda call the TensorFlow function they name.
_FUNCTIONS = frozenset(
    """
    __operators__.add __operators__.getitem __operators__.sub __operators__.truediv
    cast clip_by_value concat convert_to_tensor expand_dims identity
    image.resize math.abs math.add math.divide math.divide_no_nan math.exp
    math.l2_normalize math.log math.maximum math.minimum math.multiply
    math.negative math.pow math.reciprocal math.reduce_max math.reduce_mean
    math.reduce_min math.reduce_sum math.rsqrt math.scalar_mul math.sigmoid
    math.sqrt math.square math.subtract math.tanh math.truediv linalg.matmul
    nn.avg_pool2d nn.elu nn.gelu nn.l2_normalize nn.leaky_relu nn.max_pool2d
    nn.relu nn.relu6 nn.selu nn.sigmoid nn.silu nn.softmax nn.softplus nn.swish
    nn.tanh pad reshape split square squeeze stack strided_slice tile transpose
    unstack
    """.split()
)
# Not layers: how the two formats write what JSON has no word for.
_NOTATION = ("TensorShape", "__tuple__", "__ellipsis__")
_ARRAYS = ("__numpy__", "__tensor__")
_ARRAY_TYPES = ("bool", "int32", "int64", "float16", "float32", "float64")

# As class names, these make Keras import a module, call a function or unmarshal code.
_CALLS = ("function", "__lambda__", "__typespec__", "__bytes__")

_WHY = {
    "Lambda": "a Lambda layer is arbitrary code; replace it by plain layers",
    "PruneLowMagnitude": "strip the pruning wrappers before saving",
    "QuantizeWrapperV2": "quantization-aware models have a saved form of their own",
}


def _modules() -> dict[str, set[str | None]]:
    """Maps every allowed class name to the modules that may stand beside it."""
    tf_op = "tf_keras.src.layers.core.tf_op_layer"
    modules: dict[str, set[str | None]] = {
        "Functional": {"tf_keras.src.engine.functional", "keras.engine.functional"},
        "TFOpLambda": {tf_op},
        "SlicingOpLambda": {tf_op},
        "LayerScale": {"tf_keras.src.applications.convnext"},
    }
    modules |= {name: {None} for name in _NOTATION}
    spaces = {
        "layers": _LAYERS,
        "initializers": _INITIALIZERS,
        "regularizers": _REGULARIZERS,
        "constraints": _CONSTRAINTS,
        "mixed_precision": ["Policy"],
        "models": ["Sequential", "Model"],
    }
    for space, names in spaces.items():
        for name in names:
            home = getattr(getattr(keras, space), name).__module__
            public = {f"keras.{space}", f"tf_keras.{space}"}
            modules[name] = {home, *public}
    modules["Sequential"] |= {"keras", "tf_keras"}
    modules["Model"] |= {"keras", "tf_keras"}
    for allowed in modules.values():  # standalone Keras 2 was called `keras`
        allowed |= {m.removeprefix("tf_") for m in allowed if m}
    return modules


_MODULES = _modules()


def check_config(config: Any, source: object) -> None:
    """Refuses a model configuration that holds anything but plain layers.

    Args:
        config: The whole configuration as parsed from JSON.
        source: What to call it in the error, such as the file's path.

    Raises:
        ValueError: Naming the first layer that is not allowed, and why.
    """
    for problem in find_problems(config):
        raise ValueError(f"{source}: {problem}")


def find_problems(config: Any) -> Iterator[str]:
    """Yields what a model configuration holds that is not allowed, and why.

    Args:
        config: As for `check_config`.
    """
    pending = [(config, "the model")]
    while pending:
        item, owner = pending.pop()
        if isinstance(item, dict):
            owner = _name(item) or owner
            problem = _problem(item)
            if problem:
                yield f"{owner} {problem}"
                continue  # What is inside of it is not asked for.
            pending.extend((value, owner) for value in reversed(item.values()))
        elif isinstance(item, (list, tuple)):
            pending.extend((value, owner) for value in reversed(item))


def _name(item: dict) -> str | None:
    inner = item.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    name = name or item.get("name")
    return f"layer {name[:60]!r}" if "class_name" in item and _is_text(name) else None


def _problem(item: dict) -> str | None:
    """Says what is wrong with one dictionary of a configuration, if anything."""
    if "class_name" in item:
        problem = _class_problem(item)
        if problem:
            return problem
    activation = item.get("activation")
    if _is_text(activation) and activation not in _ACTIVATIONS:
        return f"names the unknown activation {activation[:60]!r}"
    function = item.get("function", "identity")
    if not _is_text(function) or function not in _FUNCTIONS:
        return f"calls {str(function)[:60]!r}, which is not on the allow-list"
    return None


def _class_problem(item: dict) -> str | None:
    name, module = item["class_name"], item.get("module")
    registered = item.get("registered_name")
    if not _is_text(name) or not all(
        value is None or _is_text(value) for value in (module, registered)
    ):
        return "has a class that is not named by text"
    plain = {key: item[key] for key in item if key != "shared_object_id"}
    if name == "function" and plain in _own_functions():
        return None
    if name in _CALLS:
        return f"is a {name.strip('_')}, which names code; only plain layers are loaded"
    own = _own_class(name if registered is None else registered)
    if own is not None:
        # Keras goes by `class_name` before it looks at the registered name.
        if name not in (own.__name__, f"{OWN_PACKAGE}{own.__name__}"):
            return f"of class {name[:60]!r} is redirected to {str(registered)[:60]!r}"
        ours = module in (None, own.__module__) or module.startswith("kdprune.")
        if not ours:
            return f"names {_quote(module, name)}, which is not where {name} lives"
        return None
    if name in _ARRAYS:
        inner = item.get("config")
        if not isinstance(inner, dict) or inner.get("dtype") not in _ARRAY_TYPES:
            return "holds an array that is not of plain numbers"
        return None
    if name in _WHY:
        return f"is of class {name}: {_WHY[name]}"
    if name not in _MODULES:
        return f"is or uses {_quote(module, name)}, which is not on the allow-list"
    if module is not None and module not in _MODULES[name]:
        if module.startswith("keras.src."):
            return f"names {_quote(module, name)}, as Keras 3 does; save with tf_keras"
        return f"names {_quote(module, name)}, which is not where {name} lives"
    if registered not in (None, name):
        return f"of class {name} is redirected to {str(registered)[:60]!r}"
    return None


def _own_functions() -> list[dict[str, str]]:
    """What Keras writes of our own activations: these entries and no others."""
    return [
        {
            "module": "builtins",
            "class_name": "function",
            "config": f"{OWN_PACKAGE}{function.__name__}",
            "registered_name": "function",
        }
        for function in (hard_sigmoid, hard_silu)
    ]


def _own_class(name: str) -> type | None:
    """The class of ours that is registered under a name, or None."""
    if not name.startswith(OWN_PACKAGE):
        return None
    found = keras.saving.get_registered_object(name)
    return found if isinstance(found, type) else None


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _quote(module: str | None, name: str) -> str:
    return repr(f"{module}.{name}"[:80] if module else name[:80])
