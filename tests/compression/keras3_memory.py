"""Compresses a Keras 3 model that is in memory; its own process.

    python keras3_memory.py FOLDER

Bright and dark images are told apart by a network that takes [-1, 1].
"""

import sys

import keras
import numpy as np
from keras import layers

import kdprune

random = np.random.default_rng(0)
labels = np.arange(1200) % 2
images = random.uniform(0, 0.6, (1200, 8, 8, 3)) + 0.4 * labels[:, None, None, None]
images = (2 * images - 1).astype("float32")
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        layers.Conv2D(8, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.1),
        layers.Dense(2, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
model.fit(images, labels, batch_size=50, epochs=4, verbose=0)


def compress():
    return kdprune.compress(
        model,
        (images, labels),
        output=sys.argv[1],
        classes=["dark", "bright"],
        input_range=(-1, 1),
        max_drop=0.02,
    )


made = compress()
print(made)
assert made.met, made.reasons
assert made.files["int8"].is_file()
# Again, nothing is left to do.
assert compress().records == made.records
