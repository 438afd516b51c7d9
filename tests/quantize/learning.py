"""Networks that have learned, quantization-aware, held against their int8 files."""

import numpy as np
import tf_keras as keras

from kdprune import tflite
from kdprune._graph import rebuild
from kdprune.intake import take_model
from kdprune.models import load_model
from kdprune.prune import recalibrate_batch_norm
from kdprune.quantize import calibrate_ranges, quantize_model

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def prepared(file, input_range):
    """The network of a Keras 3 file, whose statistics follow a short training."""
    model = take_model(load_model(file), input_range=input_range).model
    return rebuild(
        model,
        config=lambda layer: (
            {"momentum": 0.9}
            if isinstance(layer, keras.layers.BatchNormalization)
            else None
        ),
    )


def fit(model, data, epochs, rate):
    images, labels = data
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    pixels = images.astype("float32") / np.float32(255)
    model.fit(pixels, labels, batch_size=50, epochs=epochs, verbose=0)


def prove(model, train, validation, epochs, rate=0.002, aware_epochs=1):
    """Trains a network, then quantization-aware, and compares it with its file.

    Returns:
        Dict of `float` and `aware` accuracy; `steps` (99 % of the file's logits are
        within so many steps of the fake-quantized model's), `agreement` of the best
        class, `spread` of the logits (standard deviation, in steps), `float_ops` and
        `float_layers`.
    """
    fit(model, train, epochs, rate)
    recalibrate_batch_norm(model, train[0][:500])
    aware = quantize_model(model, calibration=train[0][:200])
    fit(aware, [part[:1000] for part in train], aware_epochs, rate / 20)
    calibrate_ranges(aware, train[0][:200])
    images, labels = validation
    pixels = images.astype("float32") / np.float32(255)
    content = tflite.convert_tflite(aware, "int8")
    figures = tflite.inspect_tflite(content)
    logits, scale = logits_of(content, images)
    expected = aware.predict(pixels, verbose=0)
    steps = np.abs(logits - expected) / scale
    best = expected.argmax(axis=1)
    kinds = ("QUANTIZE", "DEQUANTIZE")
    return {
        "float": accuracy(model.predict(pixels, verbose=0), labels),
        "aware": accuracy(expected, labels),
        "file": accuracy(logits, labels),
        "steps": float(np.quantile(steps, 0.99)),
        "most_steps": float(steps.max()),
        "agreement": float((logits.argmax(axis=1) == best).mean()),
        "spread": float(expected.std() / scale),
        "float_ops": [r["op"] for r in figures["float_ops"] if r["op"] not in kinds],
        "float_layers": aware.quantized_from.float_layers,
        "changes": len(aware.quantized_from.changes),
        "parameters": model.count_params(),
    }


def accuracy(scores, labels):
    return float((scores.argmax(axis=1) == labels).mean())


def logits_of(content, images):
    """What a file's softmax takes, in real numbers, and the step of it."""
    interpreter = tflite.open_interpreter(content, "builtin", keep_all=True)
    source = interpreter.get_input_details()[0]["index"]
    (softmax,) = [
        op for op in interpreter._get_ops_details() if op["op_name"] == "SOFTMAX"
    ]
    index = int(softmax["inputs"][0])
    details = {int(d["index"]): d for d in interpreter.get_tensor_details()}
    scale, zero_point = details[index]["quantization"]
    found = []
    for image in images:
        interpreter.set_tensor(source, (image.astype(int) - 128).astype(np.int8)[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(index)[0].astype(int) - zero_point)
    return np.array(found) * scale, scale
