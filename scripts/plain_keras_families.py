"""Saves a network of `keras.applications`, barely trained, by plain Keras 3.

    python plain_keras_families.py FAMILY FOLDER

Nothing of kdprune is imported. Random weights alone would prove nothing: a deep network
of them amplifies whatever is different, a rounding as well. So it sees images of ten
kinds for a few steps, batch normalization takes its statistics from them, and the last
layer is fitted to tell them apart (ridge regression). FOLDER then has the model and, in
`arrays.npz`, images to calibrate and to compare on, uint8, their kinds, and what
Keras 3 says of the latter.
"""

import pathlib
import sys

import numpy as np

SIZE, CLASSES = 32, 10
# How many images are learned from and outputs compared on; steps of training, and the
# images in one.
SHOWN, COMPARED = 200, 200
STEPS, BATCH = 40, 32
# The smallest member, the size of images, and the pixels it is used with.
FAMILIES = {
    "mobilenet": ("MobileNet", SIZE, (-1, 1)),
    "mobilenet_v2": ("MobileNetV2", SIZE, (-1, 1)),
    "mobilenet_v3": ("MobileNetV3Small", SIZE, (0, 255)),
    "efficientnet": ("EfficientNetB0", SIZE, (0, 255)),
    "efficientnet_v2": ("EfficientNetV2B0", SIZE, (0, 255)),
    "resnet": ("ResNet50", SIZE, (-1, 1)),
    "resnet_v2": ("ResNet50V2", SIZE, (-1, 1)),
    "densenet": ("DenseNet121", SIZE, (-1, 1)),
    "xception": ("Xception", 71, (-1, 1)),
    "inception": ("InceptionV3", 75, (-1, 1)),
    "nasnet": ("NASNetMobile", SIZE, (-1, 1)),
    "vgg": ("VGG16", SIZE, (-1, 1)),
    "convnext": ("ConvNeXtTiny", SIZE, (0, 255)),
}


def main():
    import keras

    family, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    name, size, (low, high) = FAMILIES[family]
    factory = getattr(keras.applications, name)
    keras.utils.set_random_seed(0)
    images, labels = draw(SHOWN + COMPARED, size)
    pixels = (low + images / np.float32(255) * (high - low)).astype("float32")
    model = factory(input_shape=(size, size, 3), weights=None, classes=CLASSES)
    train(keras, model, pixels[:SHOWN], labels[:SHOWN])
    recalibrate(keras, model, pixels[:SHOWN])
    fit_last(keras, model, pixels[:SHOWN], labels[:SHOWN])
    model.save(folder / "model.keras")
    np.savez(
        folder / "arrays.npz",
        calibration=images[: SHOWN // 2],
        learned=images[:SHOWN],
        images=images[SHOWN:],
        labels=labels[SHOWN:],
        scores=model.predict(pixels[SHOWN:], batch_size=50, verbose=0),
        input_range=(low, high),
    )


def draw(count, size):
    """Images of ten kinds: a field of colours with a disc, of its own contrast."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    kinds = []
    for _ in range(CLASSES):
        a, b = random.normal(scale=120, size=(2, 3))
        field = random.uniform(40, 215, 3) + np.multiply.outer(x - 0.5, a)
        field += np.multiply.outer(y - 0.5, b)
        (cy, cx), radius = random.uniform(0.3, 0.7, 2), random.uniform(0.15, 0.4)
        field[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = random.uniform(0, 255, 3)
        kinds.append(field)
    labels = np.arange(count) % CLASSES
    images = np.empty((count, size, size, 3))
    for image, label in zip(images, labels, strict=True):
        shift = random.integers(-size // 10, size // 10 + 1, 2)
        image[:] = np.roll(kinds[label], shift, (0, 1)) * random.uniform(0.7, 1.3)
        image += random.normal(scale=random.uniform(0, 20), size=image.shape)
    return images.clip(0, 255).astype(np.uint8), labels


def train(keras, model, pixels, labels, gives_logits=False):
    """A few steps, on other images each."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=gives_logits)
    normalized = any("Normalization" in type(x).__name__ for x in model.layers)
    # At the higher rate all images come to look alike to a network without.
    rate = 1e-3 if normalized else 1e-4
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        chosen = random.choice(len(pixels), BATCH, replace=False)
        model.train_on_batch(pixels[chosen], labels[chosen])


def recalibrate(keras, model, pixels):
    """Gives batch normalization the statistics of these images."""
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(pixels, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def fit_last(keras, model, pixels, labels):
    """Fits the last layer's scores to 6 for an image's own kind and -1 for others."""
    last = [layer for layer in model.layers if layer.weights][-1]
    features = keras.Model(model.inputs, last.input).predict(pixels, verbose=0)
    features = features.reshape(len(pixels), -1).astype("float64")
    mean = features.mean(axis=0)
    centred = features - mean
    products = centred @ centred.T
    products += 0.01 * np.trace(products) / len(pixels) * np.eye(len(pixels))
    wanted = np.where(labels[:, None] == np.arange(CLASSES), 6.0, -1.0)
    kernel = centred.T @ np.linalg.solve(products, wanted)
    shape = last.get_weights()[0].shape
    last.set_weights([kernel.reshape(shape), wanted.mean(axis=0) - mean @ kernel])


if __name__ == "__main__":
    main()
