"""What the model card and its code are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdprune.kit.fits import Needs


def task_of(found: dict[str, Any]) -> str:
    """What the outputs of a file mean that `inspect_tflite` has read: `Facts.task`."""
    if found["output"]["shape"][-1] == 1:
        return "binary"
    return "labels" if found["head"] == "sigmoid" else "classes"


@dataclass(frozen=True)
class Facts:
    """What a card says of a model.

    Attributes:
        name: The model's name.
        version: Its version.
        classes: Names of the classes, in the order of the outputs.
        array: The name of its C++ array.
        ends: For "int8" and "uint8" what `inspect_tflite` returns, and in `input`
            and `output` a `name`.
        sizes: Bytes of each file of the kit.
        flash: Bytes of the int8 model without metadata.
        needs: What the int8 model needs of a device.
        golden: The number of golden images.
        deviation: How much this machine's kernels differ from the reference
            kernels on them, in steps of 1/256.
        metrics: The content of `metrics.json`, or an empty dict.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    array: str
    ends: dict[str, dict[str, Any]]
    sizes: dict[str, int]
    flash: int
    needs: Needs
    golden: int
    deviation: int
    metrics: dict[str, Any]

    @property
    def task(self) -> str:
        """What is told: "classes", "labels" of which several may apply, "binary"."""
        return task_of(self.ends["int8"])

    @property
    def arena(self) -> int | None:
        """Working memory on TFLite Micro in bytes, None if not measured."""
        return self.needs.arena if self.needs.measured else None

    @property
    def refusal(self) -> str | None:
        """Why TFLite Micro does not run it, None if it does."""
        if self.needs.missing:
            listed = ", ".join(self.needs.missing)
            return f"TFLite Micro does not run this model: no kernel for {listed}"
        return self.needs.refusal

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return tuple(self.ends["int8"]["input"]["shape"][1:])

    @property
    def float_layers(self) -> list[str]:
        """Names of the layers that do not compute in integers."""
        rows = self.ends["int8"]["float_ops"]
        names = [row["layer"] for row in rows if "QUANTIZE" not in row["op"]]
        return list(dict.fromkeys(map(str, names)))

    @property
    def resize(self) -> str | None:
        """How the data's images came to the model's size, if that is known."""
        return self.metrics.get("dataset", {}).get("resize")

    @property
    def value_range(self) -> tuple[float, float] | None:
        """What the bytes 0 and 255 stand for, if not for black and white."""
        found = self.metrics.get("dataset", {}).get("value_range")
        return (float(found[0]), float(found[1])) if found else None

    @property
    def flagship(self) -> dict[str, Any]:
        """The entry of `metrics` that the int8 file was measured as, or {}."""
        name = self.metrics.get("flagship")
        entries = self.metrics.get("models", [])
        return next((e for e in entries if name and e.get("name") == name), {})
