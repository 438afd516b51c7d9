"""Saves models by plain Keras 3: `python keras3_models.py FOLDER NAME...`."""

import sys

import keras
from keras import applications, layers


def tutorial():
    """A tutorial's network: pixels of 0 to 255, augmentation, dropout, softmax."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.RandomFlip("horizontal"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


class Mine(layers.Layer):
    def call(self, inputs):
        return inputs * 2


def hopeless():
    """Two inputs, a Lambda, a custom layer twice, dropout that never stops."""
    image, other = keras.Input((32, 32, 3), name="image"), keras.Input((4,), name="age")
    x = layers.Conv2D(8, 3, name="conv")(image)
    x = layers.Lambda(lambda t: t * 2, name="code")(x)
    x = Mine(name="mine")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Concatenate()([x, other])
    x = layers.Dropout(0.5, name="always")(x, training=True)
    first = layers.Dense(10, name="first")(x)
    return keras.Model([image, other], [first, layers.Dense(3, name="second")(x)])


def application(name, **options):
    def make():
        return getattr(applications, name)(weights=None, **options)

    return make


SMALL = {"input_shape": (96, 96, 3), "classes": 10}
MODELS = {
    "tutorial": tutorial,
    "hopeless": hopeless,
    "mobilenetv2": application("MobileNetV2", alpha=0.35, **SMALL),
    "mobilenetv3": application(
        "MobileNetV3Small", alpha=0.75, minimalistic=True, **SMALL
    ),
    "efficientnetb0": application("EfficientNetB0"),
    "resnet50": application("ResNet50"),
}

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for name in names:
        keras.utils.set_random_seed(0)
        MODELS[name]().save(f"{folder}/{name}.keras")
