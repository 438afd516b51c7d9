"""A small trained model as the two files that a kit is made of."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.data import shapes
from kdprune.export import convert_tflite
from kdprune.models import build_model


@pytest.fixture(scope="session")
def shape_images():
    """1,000 images that the `pair` was not trained on."""
    return shapes.generate(1000, 32, seed=0, stream=shapes.TEST).images


@pytest.fixture(scope="session")
def pair():
    """A narrow ResNet-8 that was shown some shapes, as calibrated 8-bit files."""
    keras.utils.set_random_seed(0)
    split = shapes.generate(500, 32, seed=0, stream=shapes.TRAIN)
    model = build_model("resnet", filters=(8, 16, 32))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    values = split.images.astype("float32") / np.float32(255)
    model.fit(values, split.labels, batch_size=50, epochs=4, verbose=0)
    return {
        dtype: convert_tflite(model, dtype, split.images[:50])
        for dtype in ("int8", "uint8")
    }
