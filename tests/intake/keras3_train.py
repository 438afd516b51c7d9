"""Trains a tutorial's CNN by plain Keras 3 on images in 0..255; its own process.

    python keras3_train.py IMAGES.npz MODEL.keras

IMAGES.npz holds `train`, `labels`, `test`; the model's probabilities for `test` are
written to MODEL.keras.npy.
"""

import sys

import keras
import numpy as np
from keras import layers

arrays = np.load(sys.argv[1])
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input(arrays["train"].shape[1:]),
        layers.Rescaling(1.0 / 255),
        layers.RandomFlip("horizontal"),
        layers.Conv2D(16, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.1),
        layers.Dense(64, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy")
model.fit(
    arrays["train"].astype("float32"),
    arrays["labels"],
    batch_size=50,
    epochs=12,
    verbose=0,
)
model.save(sys.argv[2])
scores = model.predict(arrays["test"].astype("float32"), verbose=0)
np.save(f"{sys.argv[2]}.npy", scores)
