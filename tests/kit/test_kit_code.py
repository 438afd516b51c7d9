"""The code in a kit: the C++ array, and what the card shows for Python and C++."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tree_sitter
import tree_sitter_kotlin

from kdprune.data.shapes import CLASSES
from kdprune.kit.snippets import micro_ops

# The interface of TFLite Micro, as far as the card uses it.
STUBS = {
    "tensorflow/lite/micro/micro_interpreter.h": """
        #pragma once
        #include <cstddef>
        #include <cstdint>
        enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
        struct TfLiteTensor { union { int8_t* int8; } data; };
        namespace tflite {
        struct Model {};
        struct MicroOpResolver {};
        struct MicroInterpreter {
          MicroInterpreter(const Model*, const MicroOpResolver&, uint8_t*, size_t);
          TfLiteStatus AllocateTensors();
          TfLiteStatus Invoke();
          TfLiteTensor* input(size_t);
          TfLiteTensor* output(size_t);
        };
        }""",
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """
        #pragma once
        namespace tflite {
        template <unsigned int n> struct MicroMutableOpResolver : MicroOpResolver {
          TfLiteStatus AddAdd();
          TfLiteStatus AddAveragePool2D();
          TfLiteStatus AddConv2D();
          TfLiteStatus AddFullyConnected();
          TfLiteStatus AddMean();
          TfLiteStatus AddReshape();
          TfLiteStatus AddSoftmax();
        };
        }""",
    "tensorflow/lite/schema/schema_generated.h": """
        #pragma once
        namespace tflite { const Model* GetModel(const void*); }""",
}
MAIN = """
#include <cstdint>
#include <cstdio>
#include "model.h"
int main() {
  if (reinterpret_cast<uintptr_t>(shapes_8_model) % 16) return 1;
  return fwrite(shapes_8_model, 1, shapes_8_model_len, stdout) != shapes_8_model_len;
}
"""


def blocks(folder, language):
    """The blocks of a language on the card."""
    card = (folder / "MODEL_CARD.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def code(folder, language):
    """The last of them."""
    return blocks(folder, language)[-1]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not there")
def test_the_cpp_array_compiles_and_is_the_int8_model(kit, pair, tmp_path):
    (tmp_path / "main.cc").write_text(MAIN)
    flags = ("-std=c++11", "-Wall", "-Wextra", "-Werror", f"-I{kit}")
    sources = (tmp_path / "main.cc", kit / "model.cc")
    run("g++", *flags, *sources, "-o", tmp_path / "main")
    assert run(tmp_path / "main") == pair["int8"]


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not there")
def test_the_cards_cpp_code_compiles_against_tflite_micros_interface(kit, tmp_path):
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "main.cc").write_text(code(kit, "cpp"))
    flags = ("-std=c++17", "-Wall", "-Werror", f"-I{tmp_path}", f"-I{kit}")
    run("g++", "-fsyntax-only", *flags, tmp_path / "main.cc")


@pytest.mark.parametrize(
    ("op", "method"),
    [
        ("CONV_2D", "AddConv2D"),
        ("DEPTHWISE_CONV_2D", "AddDepthwiseConv2D"),
        ("FULLY_CONNECTED", "AddFullyConnected"),
        ("HARD_SWISH", "AddHardSwish"),
        ("L2_NORMALIZATION", "AddL2Normalization"),
        ("MEAN", "AddMean"),
        ("PADV2", "AddPadV2"),
        ("RELU6", "AddRelu6"),
        ("SPACE_TO_BATCH_ND", "AddSpaceToBatchNd"),
    ],
)
def test_operators_are_called_as_in_tflite_micro(op, method):
    assert micro_ops([op]) == [method]


def test_the_cards_kotlin_code_is_kotlin(kit):
    # Android's own compiler and libraries are in no package registry of Python: the
    # grammar is checked here, what the calls do in test_kit_clients.
    kotlin = tree_sitter.Language(tree_sitter_kotlin.language())
    parse = tree_sitter.Parser(kotlin).parse
    mediapipe, litert = blocks(kit, "kotlin")
    for source in (mediapipe, litert):
        assert not parse(source.encode()).root_node.has_error
        assert "$" not in source
    assert parse(litert.replace("context.assets,", ",").encode()).root_node.has_error


def test_the_cards_python_code_runs(kit):
    said = run(sys.executable, "-I", "-c", code(kit, "python"), cwd=kit).decode()
    with np.load(kit / "golden.npz") as golden:
        expected = golden["scores"][0]
    label, score = said.split()
    assert label == CLASSES[expected.argmax()]
    assert float(score) == pytest.approx(expected.max() / 256, abs=0.1)
