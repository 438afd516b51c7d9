"""Images that several tests learn from."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def quadrants():
    """A function that makes images: noise, brighter in the quadrant of the class."""

    def make(count, size, step=127):
        """uint8 images `(count, size, size, 3)`, and labels from 0 to 3."""
        rng = np.random.default_rng(0)
        labels, half = np.arange(count) % 4, size // 2
        images = rng.integers(0, 128, (count, size, size, 3))
        for image, label in zip(images, labels, strict=True):
            row, column = (half * place for place in divmod(label, 2))
            image[row : row + half, column : column + half] += step
        return images.astype(np.uint8), labels

    return make
