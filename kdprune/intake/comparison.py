"""How far the outputs of a rebuilt model are from those of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the largest output. The same sums in another order differ by less.
LIMIT = 1e-5
# The same of an original that computes in half precision, with three digits.
HALF_LIMIT = 1e-2
# What it may be at most where the model itself amplifies roundings.
ROUNDING_LIMIT = 1e-3


@dataclass(frozen=True)
class Comparison:
    """What a model that kdprune works on says, beside what the original says.

    Attributes:
        original: What computed the original's outputs: "Keras 3", "tf_keras".
        images: On how many images.
        deviation: The largest difference, as a share of the largest output; None if
            they were not compared.
        limit: What it may be.
        why_not: Why they were not compared, or "".
    """

    original: str
    images: int = 0
    deviation: float | None = None
    limit: float = LIMIT
    why_not: str = ""

    @property
    def agrees(self) -> bool:
        """Whether nothing speaks against the model: it agrees, or is not compared."""
        return self.deviation is None or self.deviation <= self.limit

    def __str__(self) -> str:
        if self.deviation is None:
            return f"outputs were not compared with {self.original}: {self.why_not}"
        return (
            f"outputs are within {self.deviation:.1g} of those of {self.original}, as "
            f"a share of the largest, on {self.images} images"
        )

    def check(self, name: object) -> None:
        """Raises `ValueError` in one line if the outputs differ by more than that."""
        if not self.agrees:
            raise ValueError(
                f"{name}: the rebuilt model's outputs differ from those of "
                f"{self.original} by {self.deviation:.2g} of the largest, on "
                f"{self.images} images. Expected: at most {self.limit:g}; please "
                "report it, with the model's layers"
            )

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON-able dict, without what does not apply."""
        if self.deviation is None:
            return {"original": self.original, "why_not": self.why_not}
        found = asdict(self)
        found.pop("why_not")
        return found


def compare_outputs(
    original: str,
    expected: Sequence[NDArray],
    found: Sequence[NDArray],
    limit: float = LIMIT,
) -> Comparison:
    """Compares the outputs of two models on the same images.

    Args:
        original: What computed the first.
        expected: An array `(n, …)` for each output of the original.
        found: Likewise, of the other.
        limit: What the largest difference may be, as a share of the largest output.

    Returns:
        A `Comparison`; of outputs whose shapes or number differ, or that are not all
        numbers, the deviation is infinite.
    """
    images = len(expected[0]) if expected else 0
    pairs = list(zip(map(_numbers, expected), map(_numbers, found), strict=False))
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in pairs):
        return Comparison(original, images, float("inf"), limit)
    worst = 0.0
    for a, b in pairs:
        largest = float(np.abs(a).max(initial=0.0)) or 1.0
        # A number that is none compares as if it were far away.
        deviation = float(np.abs(a - b).max(initial=0.0)) / largest
        worst = max(worst, deviation if np.isfinite(deviation) else float("inf"))
    return Comparison(original, images, worst, limit)


def random_images(shape: Sequence[int], count: int = 8) -> NDArray[np.uint8]:
    """Noise for a model of any input `shape`, uint8 `(count, *shape)`.

    Plain noise looks the same to a network from afar: half of the images are of
    coarse blocks.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    if len(shape) < 2:
        return images
    height, width = shape[0], shape[1]
    for index in range(0, count, 2):
        size = (4, 4, *shape[2:])
        blocks = random.integers(0, 256, size, dtype=np.uint8)
        rows = np.arange(height) * 4 // height
        columns = np.arange(width) * 4 // width
        images[index] = blocks[rows][:, columns]
    return images


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)
