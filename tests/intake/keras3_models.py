"""Saves models by plain Keras 3, and what they say of some images; its own process.

    python keras3_models.py FOLDER NAME…

Writes `NAME.keras`, `NAME.h5` and `NAME.npz` (images `x`, outputs `y`). Batch
normalization is given statistics of its own, so that a mixed-up array shows.
"""

import pathlib
import sys

import keras
import numpy as np
from keras import layers


def tutorial():
    """What a beginner writes: rescaling, augmentation, dropout, softmax."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Rescaling(1.0 / 255),
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Dropout(0.2),
            layers.Conv2D(12, 3, activation="relu", kernel_regularizer="l2"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def arithmetic():
    """Operations in the graph that are no layers, and residual sums."""
    images = keras.Input((16, 16, 3), name="images")
    x = (images / 127.5 - 1.0) * 2.0 + 0.5
    x = 1.0 - x
    y = layers.Conv2D(6, 3, padding="same")(x)
    z = layers.Conv2D(6, 3, padding="same", kernel_constraint="max_norm")(x)
    x = layers.Concatenate()([layers.Add()([y, z]), y + z, y * z, y - z])
    x = keras.ops.relu6(x)
    x = layers.Activation("hard_silu")(x)
    x = layers.Activation("hard_sigmoid")(x)
    x = layers.LeakyReLU(0.1)(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    return keras.Model(images, layers.GlobalAveragePooling2D()(x))


def nested():
    """Transfer learning: a base inside, frozen, called for inference."""
    base = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.SeparableConv2D(8, 3, strides=2),
            layers.BatchNormalization(),
        ],
        name="base",
    )
    base.trainable = False
    inner = keras.Input((32, 32, 3))
    head = keras.Model(inner, layers.Conv2D(8, 1, activation="gelu")(base(inner)))
    images = keras.Input((32, 32, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(images)
    x = layers.RandomFlip("horizontal")(x)  # Written with training=True.
    x = head(x, training=False)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(1, activation="sigmoid")(x)
    return keras.Model(images, x)


def reversed_channels():
    """RGB turned to BGR, less the mean, as the ResNets of Keras have it."""
    images = keras.Input((16, 16, 3))
    x = keras.applications.resnet50.preprocess_input(images)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    return keras.Model(images, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


def shared():
    """One layer called twice; groups, normalizations, padding, upsampling."""
    images = keras.Input((16, 16, 4))
    conv = layers.Conv2D(4, 3, padding="same", groups=2, name="twice")
    x = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 3, 2, 1])(images)
    x = conv(layers.Activation("silu")(conv(x)))
    x = layers.LayerNormalization()(layers.ZeroPadding2D(((0, 1), (2, 1)))(x))
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.Cropping2D(2)(x))
    x = layers.Conv2DTranspose(4, 3, strides=2)(layers.SpatialDropout2D(0.1)(x))
    x = layers.AveragePooling2D(3, padding="same")(layers.GaussianNoise(0.1)(x))
    x = layers.GroupNormalization(2)(layers.Permute((2, 1, 3))(x))
    return keras.Model(images, layers.Dense(5)(layers.Reshape((-1,))(x)))


def convnext():
    """A small ConvNeXt: a factor for each channel, made by a layer of its module."""
    network = keras.src.applications.convnext.ConvNeXt(
        **{"depths": (1, 1, 2, 1), "projection_dims": (6, 8, 8, 10)},
        **{"input_shape": (32, 32, 3), "classes": 5, "weights": None},
        **{"name": "small", "weights_name": ""},
    )
    for layer in network.layers:
        if type(layer).__name__ == "LayerScale":
            rng = np.random.default_rng(len(layer.name))
            layer.set_weights([rng.uniform(0.5, 2, layer.gamma.shape)])
    return network


def activations():
    """Every activation that can be read, by name, on values from -4 to 4."""
    images = keras.Input((8, 8, 2))
    x = layers.Rescaling(8 / 255, -4.0)(images)
    names = """
        elu exponential gelu hard_sigmoid hard_silu leaky_relu linear mish relu relu6
        selu sigmoid silu softmax softplus softsign swish tanh log_softmax hard_swish
    """.split()
    found = [layers.Activation(name)(x) for name in names]
    return keras.Model(images, layers.Flatten()(layers.Concatenate()(found)))


def half():
    """Trained in mixed precision."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return tutorial()
    finally:
        keras.mixed_precision.set_global_policy("float32")


def _application(name, **arguments):
    def make():
        size = arguments.pop("size", 64)
        factory = getattr(keras.applications, name)
        return factory(
            input_shape=(size, size, 3), weights=None, classes=7, **arguments
        )

    return make


MODELS = {
    "tutorial": tutorial,
    "arithmetic": arithmetic,
    "nested": nested,
    "reversed_channels": reversed_channels,
    "shared": shared,
    "activations": activations,
    "half": half,
    "convnext": convnext,
    "MobileNetV2": _application("MobileNetV2", alpha=0.35),
    "MobileNetV3Small": _application("MobileNetV3Small"),
    "EfficientNetB0": _application("EfficientNetB0"),
    "ResNet50": _application("ResNet50"),
    "VGG16": _application("VGG16", size=32),
    "DenseNet121": _application("DenseNet121"),
    "Xception": _application("Xception", size=71),
    "InceptionV3": _application("InceptionV3", size=75),
}


def main(folder, names):
    for name in names:
        keras.utils.set_random_seed(1)
        model = MODELS[name]()
        rng = np.random.default_rng(2)
        for layer in model._flatten_layers(include_self=False):
            if isinstance(layer, layers.BatchNormalization):
                shapes = [weight.shape for weight in layer.weights]
                layer.set_weights([rng.uniform(0.5, 1.5, s) for s in shapes])
        x = rng.uniform(0, 255, (5, *model.input_shape[1:])).astype("float32")
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")
        np.savez(folder / f"{name}.npz", x=x, y=model.predict(x, verbose=0))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
