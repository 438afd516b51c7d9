"""Generated images whose expected scores go into a kit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NOISE = 8


def golden_images(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Generates plain grounds, gradients, a chequerboard and noise.

    Args:
        shape: `(height, width, channels)`.

    Returns:
        uint8 pixels, shape `(n, height, width, channels)`; the same each time.
    """
    height, width, _ = shape
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    rows, columns = np.mgrid[:height, :width]
    planes = [
        *(np.full((height, width), value) for value in (0.0, 0.5, 1.0)),
        *(down, 1 - down, right, 1 - right, (down + right) / 2, (down - right + 1) / 2),
        np.hypot(down - 0.5, right - 0.5) * 2**0.5,
        (rows // 4 + columns // 4) % 2,
    ]
    gray = np.stack(planes)[..., None] * np.ones(shape[2])
    noise = np.random.default_rng(0).uniform(0, 1, (_NOISE, *shape))
    # A gradient in the first channel alone tells RGB from BGR.
    tinted = gray[3:9].copy()
    tinted[..., 1:] = 0.5
    pixels = np.concatenate([gray, tinted, noise]) * 255
    return np.rint(pixels).astype(np.uint8)
