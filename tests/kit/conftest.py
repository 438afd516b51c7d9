"""A small trained model as the two files that a kit is made of, and the kit."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.data import shapes
from kdprune.kit import write_kit
from kdprune.models import build_model
from kdprune.tflite import convert_tflite


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


@pytest.fixture(scope="session")
def metrics():
    """What a card shows, in the form of `metrics.json`."""
    return {
        "command": "kdprune run shapes.yaml",
        "dataset": {"source": "shapes (generated, seed 0)", "sizes": {"train": 500}},
        "machine": {"processor": "A Processor"},
        "flagship": "student_int8",
        "models": [
            {"name": "teacher", "dtype": "float32", "accuracy": 0.9, "macs": 12345678},
            {
                "name": "student_int8",
                "dtype": "int8",
                "accuracy": 0.8125,
                "accuracy_ci": [0.79, 0.83],
                "bytes": 98496,
                "bytes_gzip": 87654,
                "latency_ms_p50": 0.1234,
                "latency_ms_p90": 0.2345,
                "threads": 1,
                "resolver": "xnnpack",
                "per_class": [0.9, 0.4, *[0.9] * 8],
                "ece": 0.031,
            },
        ],
    }


@pytest.fixture(scope="session")
def kit(pair, shape_images, metrics, tmp_path_factory):
    """A kit's folder; not to be changed."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    write_kit(
        folder,
        **pair,
        classes=shapes.CLASSES,
        name="shapes-8",
        images=shape_images[:15],
        metrics=metrics,
    )
    return folder
