"""What people do without kdprune: train by plain Keras 3, convert by its own ways.

Imports nothing of kdprune. Trains one of five classifiers, or another form of the
first, on arrays, saves it, makes an int8 file of it by TensorFlow's converter, and by
litert-quantizer where that is installed, and writes down the scores of all of them on
the test images.

Usage:
    python scripts/plain_keras.py NETWORK ARRAYS.npz FOLDER [--epochs N]

ARRAYS.npz holds `x_train`, `y_train`, `x_test` (uint8 images). FOLDER gets
`model.keras` (or `model.h5`), `scores.npz` with an array of each, and the int8 files.
"""

import argparse
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("arrays", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    arrays = np.load(options.arrays)
    images, targets = arrays["x_train"], arrays["y_train"]
    build, pixels, file = NETWORKS[options.network]
    units = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    keras.utils.set_random_seed(0)
    model = build(images.shape[1:], 1 if options.network == "one_unit" else units)

    several = options.network in ("several_labels", "one_unit")
    steps = options.epochs * len(images) // 64
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        "binary_crossentropy" if several else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(pixels(images), targets, batch_size=64, epochs=options.epochs, verbose=2)
    options.folder.mkdir(parents=True, exist_ok=True)
    model.save(options.folder / file)
    test = pixels(arrays["x_test"])
    scores = {"original": model.predict(test, verbose=0)}
    samples = pixels(images[:200])
    files, seconds = {}, {}
    for name, convert in (("converter", by_converter), ("litert", by_litert)):
        started = time.perf_counter()
        content = convert(model, samples, options.folder)
        if content is not None:
            files[name] = options.folder / f"{name}.tflite"
            files[name].write_bytes(content)
            seconds[name] = time.perf_counter() - started
            scores[name] = score(files[name], test)
    np.savez(options.folder / "scores.npz", **scores, seconds=str(seconds))


# --- Networks ---


def tutorial(shape, units):
    """A tutorial's: rescaling and augmentation inside, softmax at its end."""
    return _cnn(units, keras.Input(shape), layers.Rescaling(1 / 255))


def tutorial_outside(shape, units):
    """The same for pixels that are brought to another range before they come in."""
    return _cnn(units, keras.Input(shape))


def _cnn(units, *first):
    model = keras.Sequential([*first, layers.RandomFlip("horizontal")])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.BatchNormalization())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(units, activation="softmax"))
    return model


def mobilenet(shape, units):
    """MobileNetV2 inside, as in transfer learning; pixels of [-1, 1], said nowhere."""
    base = keras.applications.MobileNetV2(
        shape, alpha=0.35, include_top=False, weights=None
    )
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # Of few steps, or its statistics stay the first ones.
    inputs = keras.Input(shape)
    x = layers.GlobalAveragePooling2D()(base(inputs))
    return keras.Model(inputs, layers.Dense(units, activation="softmax")(x))


def raw_bytes(shape, units):
    """Pixels of 0 to 255 and no layer that says so; logits' softmax in the model."""
    inputs = x = keras.Input(shape)
    for filters in (24, 48):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Softmax()(layers.Dense(units)(x)))


def several_labels(shape, units):
    """Five labels, any of which may apply: sigmoids."""
    return _with_sigmoid(shape, units)


def one_unit(shape, units):
    """Two classes, told apart by one sigmoid."""
    return _with_sigmoid(shape, units)


def _with_sigmoid(shape, units):
    inputs = keras.Input(shape)
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(units, activation="sigmoid")(x))


# --- What the networks take for the bytes of an image ---


def as_bytes(images):
    return images.astype("float32")


def signed(images):
    return images.astype("float32") / 127.5 - 1


def standardized(images):
    """By the mean and deviation of ImageNet, as much published code does."""
    values = images.astype("float32") / 255 - [0.485, 0.456, 0.406]
    return (values / [0.229, 0.224, 0.225]).astype("float32")


NETWORKS = {
    "tutorial": (tutorial, as_bytes, "model.keras"),
    "mobilenet": (mobilenet, signed, "model.keras"),
    "raw_bytes": (raw_bytes, as_bytes, "model.keras"),
    "several_labels": (several_labels, as_bytes, "model.keras"),
    "one_unit": (one_unit, as_bytes, "model.keras"),
    "tutorial_h5": (tutorial, as_bytes, "model.h5"),
    "tutorial_bytes": (tutorial_outside, as_bytes, "model.keras"),
    "tutorial_signed": (tutorial_outside, signed, "model.keras"),
    "tutorial_standardized": (tutorial_outside, standardized, "model.keras"),
}


# --- Int8 ---


def by_converter(model, samples, folder):
    """Eight lines of TensorFlow's guide to post-training int8."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one[None]] for one in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def by_litert(model, samples, folder):
    """Google's quantizer of float files, with its own defaults; None without it."""
    try:
        from litert_quantizer import quantizer, recipe
    except ImportError:
        return None
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    path = folder / "float.tflite"
    path.write_bytes(converter.convert())
    tool = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    interpreter = tf.lite.Interpreter(str(path))
    ((signature, ends),) = interpreter.get_signature_list().items()
    statistics = tool.calibrate(
        {signature: [{ends["inputs"][0]: one[None]} for one in samples]}
    )
    return bytes(tool.quantize(statistics).quantized_model)


def score(path, pixels):
    """A file's scores, one image after the other."""
    interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    found = []
    for one in pixels:
        interpreter.set_tensor(given["index"], _as(one[None], given))
        interpreter.invoke()
        values = interpreter.get_tensor(made["index"])[0].astype("float32")
        scale, zero = made["quantization"]
        found.append((values - zero) * scale if scale else values)
    return np.stack(found)


def _as(values, detail):
    scale, zero = detail["quantization"]
    if not scale:
        return values
    limits = np.iinfo(detail["dtype"])
    quantized = np.round(values / scale + zero)
    return np.clip(quantized, limits.min, limits.max).astype(detail["dtype"])


if __name__ == "__main__":
    main()
