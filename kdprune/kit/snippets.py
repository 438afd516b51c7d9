"""Code for the model card, with one model's names, shapes and types."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable
from typing import Any

from kdprune.kit.facts import Facts

# Names of TFLite Micro's `Add…` methods that do not follow from the operator's.
_MICRO_NAMES = {"BATCH_MATMUL": "BatchMatMul", "PADV2": "PadV2", "CUMSUM": "CumSum"}

_MEDIAPIPE = """\
// build.gradle.kts: implementation("com.google.mediapipe:tasks-vision:latest.release")
// model_uint8.tflite goes into src/main/assets.
import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.RunningMode
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier

fun openClassifier(context: Context): ImageClassifier {
    val base = BaseOptions.builder().setModelAssetPath("model_uint8.tflite").build()
    val options = ImageClassifier.ImageClassifierOptions.builder()
        .setBaseOptions(base)
        .setRunningMode(RunningMode.IMAGE)
        $options
        .build()
    return ImageClassifier.createFromOptions(context, options)
}

// Takes a bitmap of any size, ARGB_8888; it is scaled to $width x $height inside.
fun classify(classifier: ImageClassifier, bitmap: Bitmap): $answer {
    val result = classifier.classify(BitmapImageBuilder($bitmap).build())
$of_mediapipe
}
"""

_LITERT = """\
// build.gradle.kts: implementation("com.google.ai.edge.litert:litert:2.3.0")
// model_uint8.tflite and labels.txt go into src/main/assets.
import android.content.Context
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

class Classifier(context: Context) {
    private val labels = context.assets.open("labels.txt").bufferedReader().readLines()
    private val model = CompiledModel.create(
        context.assets, "model_uint8.tflite", CompiledModel.Options(Accelerator.CPU)
    )
    private val inputs = model.createInputBuffers()    // uint8 $input_shape
    private val outputs = model.createOutputBuffers()  // uint8 $output_shape

    fun classify(bitmap: Bitmap): $answer {
        val pixels = IntArray($width * $height)
        Bitmap.createScaledBitmap($bitmap, $width, $height, true)
            .getPixels(pixels, 0, $width, 0, 0, $width, $height)
        val bytes = ByteArray(pixels.size * $channels)
        pixels.forEachIndexed { i, pixel ->
$fill
        }
        inputs[0].writeInt8(bytes)
        model.run(inputs, outputs)
        val scores = outputs[0].readInt8().map { it.toInt() and 0xFF }
$of_litert
    }
}
"""

_FILL = {
    3: """\
            bytes[3 * i] = (pixel shr 16).toByte()
            bytes[3 * i + 1] = (pixel shr 8).toByte()
            bytes[3 * i + 2] = pixel.toByte()""",
    1: """\
            val red = pixel shr 16 and 0xFF
            val green = pixel shr 8 and 0xFF
            val blue = pixel and 0xFF
            bytes[i] = ((299 * red + 587 * green + 114 * blue) / 1000).toByte()""",
}

_PYTHON = """\
# pip install numpy ai-edge-litert
import numpy as np
from ai_edge_litert.interpreter import Interpreter

classes = open("labels.txt", encoding="utf-8").read().splitlines()
interpreter = Interpreter("model_uint8.tflite")
interpreter.allocate_tensors()
source = interpreter.get_input_details()[0]["index"]  # $input_name
target = interpreter.get_output_details()[0]["index"]  # $output_name

image = np.load("golden.npz")["images"][0]  # yours: uint8 $image_shape
interpreter.set_tensor(source, image[None])
interpreter.invoke()
scores = interpreter.get_tensor(target)[0] / 256
$of_python
"""

# What the code makes of the scores, by the task: one of several classes, labels of
# which several may apply, or a single score that tells two classes apart.
_ANSWERS: dict[str, dict[str, str]] = {
    "classes": {
        "options": ".setMaxResults($best)",
        "answer": "Pair<String, Float>",
        "of_mediapipe": """\
    val best = result.classificationResult().classifications()[0].categories()[0]
    return Pair(best.categoryName(), best.score())""",
        "of_litert": """\
        val best = scores.indices.maxByOrNull { scores[it] }!!
        return Pair(labels[best], scores[best] / 256f)""",
        "of_python": "print(classes[scores.argmax()], scores.max())",
        "algorithm": "#include <algorithm>\n",
        "takes": "const uint8_t* pixels",
        "returns": "returns the class, 0 to $last, or -1.",
        "of_micro": """\
  return static_cast<int>(std::max_element(scores, scores + $classes) - scores);""",
    },
    "labels": {
        "options": ".setScoreThreshold(0.5f)",
        "answer": "List<Pair<String, Float>>",
        "of_mediapipe": """\
    // Those that apply, the surest first; often several, and often none.
    return result.classificationResult().classifications()[0].categories()
        .map { Pair(it.categoryName(), it.score()) }""",
        "of_litert": """\
        // Those that apply; often several, and often none.
        return labels.indices.filter { scores[it] > 128 }
            .map { Pair(labels[it], scores[it] / 256f) }""",
        "of_python": """\
for label, score in zip(classes, scores):
    if score > 0.5:  # Often several apply, and often none.
        print(label, score)""",
        "algorithm": "",
        "takes": "const uint8_t* pixels, bool* applies",
        "returns": "writes for\n// each of $classes labels whether it applies, and "
        "returns how many do, or -1.",
        "of_micro": """\
  int count = 0;
  for (int i = 0; i < $classes; ++i) {
    applies[i] = scores[i] > 0;
    count += applies[i];
  }
  return count;""",
    },
    "binary": {
        "options": ".setMaxResults(1)",
        "answer": "Pair<String, Float>",
        "of_mediapipe": """\
    val yes = result.classificationResult().classifications()[0].categories()[0]
    if (yes.score() > 0.5f) return Pair(yes.categoryName(), yes.score())
    return Pair($no, 1f - yes.score())""",
        "of_litert": """\
        val yes = scores[0] / 256f
        return if (yes > 0.5f) Pair(labels[1], yes) else Pair(labels[0], 1f - yes)""",
        "of_python": """\
yes = scores[0]
print(classes[int(yes > 0.5)], max(yes, 1 - yes))""",
        "algorithm": "",
        "takes": "const uint8_t* pixels",
        "returns": "returns the class, 0 or 1, or -1.",
        "of_micro": "  return scores[0] > 0;",
    },
}

_MICRO = """\
${algorithm}#include <cstddef>
#include <cstdint>

#include "model.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

// $arena_note
constexpr size_t kArenaBytes = $arena;
alignas(16) static uint8_t arena[kArenaBytes];

// Takes $pixels bytes, $image_shape; $returns
int Classify($takes) {
  static tflite::MicroMutableOpResolver<$op_count> ops;
  static const bool added =
      $adds;
  static tflite::MicroInterpreter interpreter(
      tflite::GetModel($array), ops, arena, kArenaBytes);
  static const bool ready = added && interpreter.AllocateTensors() == kTfLiteOk;
  if (!ready) return -1;

  int8_t* input = interpreter.input(0)->data.int8;  // int8 $input_shape
  for (int i = 0; i < $pixels; ++i) input[i] = static_cast<int8_t>(pixels[i] - 128);
  if (interpreter.Invoke() != kTfLiteOk) return -1;
  // int8 $output_shape: the probability is (score + 128) / 256.
  const int8_t* scores = interpreter.output(0)->data.int8;
$of_micro
}
"""


# What images went through before they were scaled, for the code that takes them.
_FITTED = {
    "crop": """\
import android.graphics.Bitmap

// Cuts the largest centered part of the model's proportions out, as in training.
fun fitted(bitmap: Bitmap): Bitmap {
    val scale = minOf(bitmap.width / $width.0, bitmap.height / $height.0)
    val width = (scale * $width).toInt().coerceIn(1, bitmap.width)
    val height = (scale * $height).toInt().coerceIn(1, bitmap.height)
    val (left, top) = Pair((bitmap.width - width) / 2, (bitmap.height - height) / 2)
    return Bitmap.createBitmap(bitmap, left, top, width, height)
}
""",
    "pad": """\
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color

// Puts black around the image, up to the model's proportions, as in training.
fun fitted(bitmap: Bitmap): Bitmap {
    val scale = maxOf(bitmap.width / $width.0, bitmap.height / $height.0)
    val width = maxOf((scale * $width).toInt(), bitmap.width)
    val height = maxOf((scale * $height).toInt(), bitmap.height)
    val padded = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
    padded.eraseColor(Color.BLACK)
    val (left, top) = Pair((width - bitmap.width) / 2f, (height - bitmap.height) / 2f)
    Canvas(padded).drawBitmap(bitmap, left, top, null)
    return padded
}
""",
}


def write_snippets(facts: Facts) -> list[str]:
    """Writes the card's sections on Android, Python and microcontrollers.

    Args:
        facts: The card's `Facts`.

    Returns:
        The parts, in Markdown.
    """
    values = _values(facts)
    parts = []
    if facts.resize in _FITTED:
        parts.append("## On Android: the image's proportions (Kotlin)")
        parts.append(_fill("kotlin", _FITTED[facts.resize], values))
    parts.append("## On Android: MediaPipe Tasks (Kotlin)")
    if facts.image_shape[2] == 3:
        parts.append(_fill("kotlin", _MEDIAPIPE, values))
    else:
        parts.append("MediaPipe's ImageClassifier takes RGB models only.")
    if facts.image_shape[2] in _FILL:
        parts.append("## On Android: LiteRT (Kotlin)")
        parts.append(_fill("kotlin", _LITERT, values))
    parts += ["## In Python", _fill("python", _PYTHON, values)]
    if not facts.refusal:
        parts.append("## On a microcontroller: TFLite Micro (C++)")
        parts.append(_fill("cpp", _MICRO, values))
    return parts


def fence(language: str, code: str) -> str:
    """Code as a Markdown block."""
    return f"```{language}\n{code.strip()}\n```"


def micro_ops(names: Iterable[str]) -> list[str]:
    """TFLite Micro's methods that add these operators: CONV_2D to AddConv2D."""
    return [
        "Add" + _MICRO_NAMES.get(name, "".join(map(_capital, name.split("_"))))
        for name in names
    ]


def _capital(part: str) -> str:
    return part if part[0].isdigit() else part.capitalize()


def _fill(language: str, template: str, values: dict[str, Any]) -> str:
    return fence(language, string.Template(template).substitute(values))


def _values(facts: Facts) -> dict[str, Any]:
    height, width, channels = facts.image_shape
    source, target = (facts.ends["uint8"][end] for end in ("input", "output"))
    adds = micro_ops(sorted(facts.ends["int8"]["ops"]))
    if facts.arena is None:
        arena = 256 * 1024
        note = "An estimate: interpreter.arena_used_bytes() returns what is needed."
    else:
        arena = math.ceil(1.1 * facts.arena / 1024) * 1024
        note = f"{facts.arena:,} bytes were used on a 64-bit machine; 10 % are added."
    values = {
        "bitmap": "fitted(bitmap)" if facts.resize in _FITTED else "bitmap",
        "best": min(3, len(facts.classes)),
        "height": height,
        "width": width,
        "channels": channels,
        "pixels": height * width * channels,
        "image_shape": f"({height}, {width}, {channels})",
        "input_shape": f"(1, {height}, {width}, {channels})",
        "output_shape": f"(1, {target['shape'][1]})",
        "no": json.dumps(facts.classes[0], ensure_ascii=False).replace("$", "\\$"),
        "input_name": source["name"],
        "output_name": target["name"],
        "classes": len(facts.classes),
        "last": len(facts.classes) - 1,
        "fill": _FILL.get(channels, ""),
        "array": facts.array,
        "arena": arena,
        "arena_note": note,
        "op_count": len(adds),
        "adds": " &&\n      ".join(f"ops.{add}() == kTfLiteOk" for add in adds),
    }
    answers = _ANSWERS[facts.task]
    return values | {
        key: string.Template(text).substitute(values) for key, text in answers.items()
    }
