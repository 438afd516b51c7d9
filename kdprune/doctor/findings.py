"""What a diagnosis is made of: obstacles, rows of layers, a proof."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Obstacle:
    """Something in the way.

    Attributes:
        stage: What it is in the way of: "loading", "images", "pixel range",
            "channel pruning", "post-training int8", "quantization-aware training".
        where: The layer, or "" for the model as a whole.
        problem: What it is.
        remedy: What to do; "" where `problem` says it.
        fatal: Whether a `compress` fails for it. What is not fatal takes a way away
            (quantization-aware training, say), or is to be decided first.
    """

    stage: str
    where: str
    problem: str
    remedy: str = ""
    fatal: bool = True

    @property
    def told(self) -> str:
        """Where, what and what to do, in a line."""
        parts = [self.problem, self.remedy]
        where = f"{self.where}: " if self.where else ""
        return f"{where}{'; '.join(filter(None, parts))}"

    def __str__(self) -> str:
        return f"{self.stage}: {self.told}"


@dataclass(frozen=True)
class LayerRow:
    """One layer of the flat model.

    Attributes:
        name: Its name.
        kind: Its class, with its activation.
        macs: Multiply-accumulates for one image.
        parameters: Its weights, all of them.
        channels: `(removable, all)` of those it makes, or None if it makes none.
        weights: How many weights unstructured pruning may set to zero.
        int8: How post-training quantization leaves it: "int8"; "float"; "folded" into
            a layer beside it; "" if that is not known.
        qat: Whether quantization-aware training takes it; None if not known.
        xnnpack: Whether XNNPACK runs all of its operators; None if it has none of its
            own or that is not known.
        gpu: Likewise of the GPU delegate.
        micro: Likewise of TFLite Micro.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    channels: tuple[int, int] | None
    weights: int
    int8: str
    qat: bool | None
    xnnpack: bool | None
    gpu: bool | None
    micro: bool | None
