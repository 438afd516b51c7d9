"""From a Keras 3 model and a folder of images to an int8 file, without kdprune.

python scripts/plain_keras_convert.py MODEL.keras PHOTOS MADE.tflite
"""

import sys

import keras
import numpy as np
import tensorflow as tf

file, photos, made = sys.argv[1:]
model = keras.models.load_model(file)


def read(split):
    return keras.utils.image_dataset_from_directory(
        f"{photos}/{split}", image_size=model.input_shape[1:3], batch_size=1
    )  # Of 0 to 255: change it here if your model takes another range.


converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([x] for x, _ in read("train").take(200))
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = converter.inference_output_type = tf.uint8
with open(made, "wb") as stream:
    stream.write(converter.convert())

interpreter = tf.lite.Interpreter(made)
interpreter.allocate_tensors()
(given,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
scale, zero = given["quantization"]
before, after = [], []
for image, label in read("test"):
    before.append(model(image, training=False).numpy().argmax() == label)
    pixels = np.clip(np.round(image / scale + zero), 0, 255).astype(np.uint8)
    interpreter.set_tensor(given["index"], pixels)
    interpreter.invoke()
    after.append(interpreter.get_tensor(scores["index"]).argmax() == label)
print(f"original {np.mean(before):.2%}, int8 file {np.mean(after):.2%}")
