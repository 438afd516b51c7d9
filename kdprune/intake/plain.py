"""A model's configuration with nothing in it but what is known, for Keras itself.

Keras imports modules that a configuration names, and looks up what is registered. The
builder of this package reads neither, so that a file may be rebuilt without harm that
Keras had better not see. Before a file's own Keras computes what the model says, its
configuration is copied by the rules here.
"""

from __future__ import annotations

import re
from typing import Any

from kdprune.intake.keras_layers import known_functions, known_names
from kdprune.intake.keras_ops import OPERATIONS

# Keras's own modules, whatever they are called in its versions.
_MODULES = re.compile(r"(tf_)?keras(\.[A-Za-z0-9_]+)*|builtins")
# How both formats write what JSON has no word for.
_NOTATION = frozenset(
    {"__keras_tensor__", "__numpy__", "__tensor__", "__ellipsis__", "__slice__"}
    | {"__tuple__", "TensorShape", "slice"}
)
_HALF = frozenset({"float16", "bfloat16", "mixed_float16", "mixed_bfloat16"})
_KEPT = ("name", "inbound_nodes", "build_config", "shared_object_id", "items")
_KNOWN = known_names() | OPERATIONS | {"Functional", "Sequential", "Model"}


def plain_config(item: Any) -> Any:
    """A copy of a configuration in which all that Keras looks up is known.

    How the model was compiled is left out, and all computes in float32.

    Args:
        item: The configuration as parsed from JSON, or a part of it.

    Raises:
        ValueError: If a class, function or module in it is not known; names it.
    """
    if isinstance(item, list):
        return [plain_config(one) for one in item]
    if not isinstance(item, dict):
        return item
    if "class_name" not in item:
        called = item.get("function", "identity")
        if not isinstance(called, str) or called not in known_functions():
            raise ValueError(f"it calls {str(called)[:60]!r}")
        return {
            key: "float32"
            if key == "dtype" and _is_half(value)
            else plain_config(value)
            for key, value in item.items()
            if key != "compile_config"
        }
    kind, module = item["class_name"], item.get("module")
    registered, inner = item.get("registered_name"), item.get("config")
    if not isinstance(kind, str) or not (
        module is None or isinstance(module, str) and _MODULES.fullmatch(module)
    ):
        raise ValueError(f"it names {str(module)[:40]}.{str(kind)[:40]}")
    if kind in ("DTypePolicy", "Policy"):
        return "float32"
    if kind == "function":
        if not isinstance(inner, str) or inner not in known_functions():
            raise ValueError(f"it names the function {str(inner)[:60]!r}")
    elif kind not in _NOTATION and kind not in _KNOWN:
        raise ValueError(f"it holds {kind[:60]!r}")
    own = (None, kind, inner if kind == "function" else kind)
    # Layers that Keras itself registers, among those that are known.
    custom = f"Custom>{kind}"
    if registered not in own and not (registered == custom and custom in _KNOWN):
        raise ValueError(f"{kind} is registered as {str(registered)[:60]!r}")
    copy = {key: plain_config(item[key]) for key in _KEPT if key in item}
    copy |= {"class_name": kind, "config": plain_config(inner)}
    named = {"module": module, "registered_name": registered}
    return copy | {key: value for key, value in named.items() if key in item}


def _is_half(value: Any) -> bool:
    return isinstance(value, str) and value in _HALF
