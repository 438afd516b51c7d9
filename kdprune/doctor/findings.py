"""What a diagnosis is made of: obstacles, rows of layers, a proof, an estimate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

OK, WARNS, FAILS = 0, 3, 4


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

    def __str__(self) -> str:
        parts = [self.problem, self.remedy]
        where = f"{self.where}: " if self.where else ""
        return f"{self.stage}: {where}{'; '.join(filter(None, parts))}"


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


@dataclass(frozen=True)
class Proof:
    """How far the outputs of what is worked on are from the original's.

    Attributes:
        original: What they were compared with.
        images: On how many images.
        deviation: The largest difference, as a share of the largest output.
    """

    original: str
    images: int
    deviation: float


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a model; printed, it is the report.

    Attributes:
        model: Its file or name.
        obstacles: All that is in the way, the fatal first.
        rows: A `LayerRow` for each layer; empty if the model can't be loaded.
        rewrites: What is done to the model before anything else, a line each.
        proof: How far outputs are from the original's after that; None if it was not
            compared.
        facts: Input, head, pixel range, labels and images, in words.
        file: Of the int8 file made of it, untrained as it is: `bytes`, `ops`,
            `float_layers`, `peak_activation_bytes`, `xnnpack_leaves`, `not_on_gpu`,
            `not_on_micro`; empty if there is none.
        estimate: About what a `compress` takes: `post_training_seconds`,
            `epoch_seconds` (of recovery under a teacher), `qat_epoch_seconds`,
            `memory_bytes`, `disk_bytes`, and `images`, for how many; empty if unknown.
    """

    model: str
    obstacles: tuple[Obstacle, ...] = ()
    rows: tuple[LayerRow, ...] = ()
    rewrites: tuple[str, ...] = ()
    proof: Proof | None = None
    facts: dict[str, str] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)
    estimate: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """0: nothing is in the way; 3: warnings; 4: a `compress` will fail."""
        if any(obstacle.fatal for obstacle in self.obstacles):
            return FAILS
        return WARNS if self.obstacles else OK

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return {**asdict(self), "status": self.status}

    def __str__(self) -> str:
        from kdprune.doctor.text import describe

        return describe(self)
