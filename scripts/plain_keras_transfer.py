"""Trains networks as transfer learning has them, by plain Keras 3; its own process.

Imports nothing of kdprune. A base of `keras.applications` without its top stands inside
a model with a new head. Its weights are random, since none can be downloaded
everywhere, and all of it is trained.

Usage:
    python scripts/plain_keras_transfer.py NAME ARRAYS.npz MODEL.keras
"""

import sys

import keras
import numpy as np
from keras import layers

EPOCHS, BATCH = 10, 32
applications = keras.applications
# The base, its width, the size of images, and what is done to them in the model.
NETWORKS = {
    "MobileNetV2": (
        applications.MobileNetV2,
        {"alpha": 0.35},
        96,
        applications.mobilenet_v2.preprocess_input,
    ),
    "MobileNetV3Small": (applications.MobileNetV3Small, {"alpha": 0.5}, 64, None),
    "EfficientNetB0": (applications.EfficientNetB0, {}, 64, None),
}


def build(name, classes=10):
    """The network, for pixels of 0 to 255."""
    base, arguments, size, prepare = NETWORKS[name]
    base = base(
        input_shape=(size, size, 3), include_top=False, weights=None, **arguments
    )
    for layer in base._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # For statistics that follow a short training.
    image = keras.Input((size, size, 3))
    x = layers.RandomFlip("horizontal")(image)
    x = base(prepare(x) if prepare else x)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(classes, activation="softmax")(x))


def main(name, arrays, file):
    keras.utils.set_random_seed(0)
    model = build(name)
    with np.load(arrays) as given:
        images, labels = given["images"].astype("float32"), given["labels"]
    steps = EPOCHS * len(images) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(0.003, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=2)
    model.save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
