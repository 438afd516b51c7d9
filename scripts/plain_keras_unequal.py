"""Trains a classifier as people do, by plain Keras 3: no line of kdprune.

Every convolution is 3 x 3 without padding, followed by ReLU and then by batch
normalization, which leaves channels of very different sizes in front of it: the kind
of network whose accuracy collapses in plain post-training int8.

Usage:
    python scripts/plain_keras_unequal.py IMAGES.npz bytes|strided MODEL.keras [EPOCHS]
        (10 epochs)

IMAGES.npz holds `train` (uint8), `labels`, `test` and `test_labels`. `bytes` takes
pixels of 0 to 255 with no layer that says so, `strided` has a Rescaling in front.
"""

import sys

import keras
import numpy as np
from keras import layers


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    images, network, path, *epochs = sys.argv[1:]
    arrays = np.load(images)
    shape, classes = arrays["train"].shape[1:], int(arrays["labels"].max()) + 1
    keras.utils.set_random_seed(0)
    # Trained in bfloat16 where that is faster, saved in float32.
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = NETWORKS[network](shape, classes)
    epochs = int(epochs[0]) if epochs else 10
    steps = epochs * len(arrays["train"]) // 128
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        arrays["train"].astype("float32"),
        arrays["labels"],
        batch_size=128,
        epochs=epochs,
        verbose=2,
    )
    keras.mixed_precision.set_global_policy("float32")
    saved = NETWORKS[network](shape, classes)
    saved.set_weights(model.get_weights())
    saved.save(path)
    scores = saved.predict(arrays["test"].astype("float32"), verbose=0)
    accuracy = (scores.argmax(axis=1) == arrays["test_labels"]).mean()
    sys.stdout.write(f"{network}: {accuracy:.4f}\n")


def of_bytes(shape, classes):
    """Six convolutions and pooling, for pixels of 0 to 255."""
    model = keras.Sequential([keras.Input(shape)])
    for filters, dropout in ((32, 0.1), (64, 0.2), (128, 0.3)):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, activation="relu", **_DECAY))
            model.add(layers.BatchNormalization())
        if filters < 128:
            model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(dropout))
    model.add(layers.Flatten())
    model.add(layers.Dense(classes, activation="softmax", dtype="float32"))
    return model


def strided(shape, classes):
    """Five convolutions, two of stride 2, and a hidden dense layer; a Functional."""
    inputs = x = keras.Input(shape)
    x = layers.Rescaling(1 / 255)(x)
    x = layers.RandomFlip("horizontal")(x)
    for filters, strides in ((24, 1), (32, 2), (48, 1), (64, 2), (96, 1)):
        x = layers.Conv2D(filters, 3, strides=strides, **_DECAY)(x)
        x = layers.ReLU()(x)
        x = layers.BatchNormalization()(x)
    x = layers.AveragePooling2D(3)(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Dense(96, activation="relu", **_DECAY)(x)
    x = layers.BatchNormalization()(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32")(x)
    return keras.Model(inputs, outputs)


_DECAY = {"kernel_regularizer": keras.regularizers.L2(1e-4)}
NETWORKS = {"bytes": of_bytes, "strided": strided}

if __name__ == "__main__":
    main()
