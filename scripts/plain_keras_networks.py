"""Saves networks as people build them, by plain Keras 3, untrained; its own process.

Imports nothing of kdprune. All networks are for ten classes; they are trained after
they were loaded, since an untrained network proves nothing about int8.

Usage:
    python scripts/plain_keras_networks.py FOLDER NAME[:SIZE[:WIDTH]]…
"""

import pathlib
import sys

import keras
from keras import layers


def tutorial(size=32):
    """What a beginner writes: each BatchNormalization behind its ReLU."""
    parts = [
        keras.Input((size, size, 3)),
        layers.Rescaling(1.0 / 255),
        layers.RandomFlip("horizontal"),
    ]
    for width in (16, 32, 48):
        parts += [
            layers.Conv2D(width, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
        ]
    parts += [
        layers.Flatten(),
        layers.Dropout(0.2),
        layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential(parts)


def squeeze_excite(size=32):
    """Channels weighed by what the whole image says; swish, PReLU, hard-swish."""
    image = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    for width, act in ((16, "silu"), (24, "prelu"), (32, "hard_silu")):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        if act == "prelu":
            x = layers.PReLU(shared_axes=[1, 2])(x)
        else:
            x = layers.Activation(act)(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(8, 1, activation="relu")(gate)
        kind = "hard_sigmoid" if act == "hard_silu" else "sigmoid"
        gate = layers.Conv2D(width, 1, activation=kind)(gate)
        x = layers.MaxPooling2D()(layers.Multiply()([x, gate]))
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, layers.Dense(10)(x))


def bottlenecks(size=32, width=8):
    """ResNet50's form, an eighth as wide and with one block a stage."""
    image = keras.Input((size, size, 3))
    x = layers.ZeroPadding2D(1)(image)
    x = layers.Conv2D(2 * width, 3)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for stage in range(3):
        filters, strides = width * 2**stage, 1 + (stage > 0)
        shortcut = layers.Conv2D(4 * filters, 1, strides=strides)(x)
        shortcut = layers.BatchNormalization()(shortcut)
        y = layers.Conv2D(filters, 1, strides=strides)(x)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.Conv2D(filters, 3, padding="same")(y)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(4 * filters, 1)(y))
        x = layers.Activation("relu")(layers.Add()([shortcut, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def mobilenetv2(size=64, alpha=0.35):
    """Transfer learning: MobileNetV2 inside a model, without its top."""
    base = keras.applications.MobileNetV2(
        (size, size, 3), alpha=alpha, include_top=False, weights=None
    )
    image = keras.Input((size, size, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(image)
    x = layers.GlobalAveragePooling2D()(base(x))
    return keras.Model(image, layers.Dense(10)(layers.Dropout(0.1)(x)))


def mobilenetv3(size=64, alpha=0.5):
    return keras.applications.MobileNetV3Small(
        (size, size, 3), alpha=alpha, weights=None, classes=10
    )


def efficientnet(size=64):
    return keras.applications.EfficientNetB0(
        input_shape=(size, size, 3), weights=None, classes=10
    )


def resnet50(size=64):
    return keras.applications.ResNet50(
        input_shape=(size, size, 3), weights=None, classes=10
    )


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    for given in sys.argv[2:]:
        name, *numbers = given.split(":")
        arguments = [float(n) if "." in n else int(n) for n in numbers]
        file = pathlib.Path(sys.argv[1]) / f"{given.replace(':', '_')}.keras"
        globals()[name](*arguments).save(file)
