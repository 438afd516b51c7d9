"""Kits of models of several labels, and of a single unit."""

import io
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tf_keras as keras
import tree_sitter
import tree_sitter_kotlin

from kdprune.kit import selftest, write_kit
from kdprune.tflite import convert_tflite, inspect_tflite, read_tflite

# TFLite Micro, as far as the card uses it, with an interpreter that gives `scores`.
STUBS = {
    "tensorflow/lite/micro/micro_interpreter.h": """
        #pragma once
        #include <cstddef>
        #include <cstdint>
        enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
        struct TfLiteTensor { union { int8_t* int8; } data; };
        inline int8_t scores[8], taken[192];
        inline TfLiteTensor in{{taken}}, out{{scores}};
        namespace tflite {
        struct Model {};
        struct MicroOpResolver {};
        struct MicroInterpreter {
          MicroInterpreter(const Model*, const MicroOpResolver&, uint8_t*, size_t) {}
          TfLiteStatus AllocateTensors() { return kTfLiteOk; }
          TfLiteStatus Invoke() { return kTfLiteOk; }
          TfLiteTensor* input(size_t) { return &in; }
          TfLiteTensor* output(size_t) { return &out; }
        };
        }""",
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """
        #pragma once
        namespace tflite {
        template <unsigned int n> struct MicroMutableOpResolver : MicroOpResolver {
        METHODS
        };
        }""",
    "tensorflow/lite/schema/schema_generated.h": """
        #pragma once
        namespace tflite { inline const Model* GetModel(const void*) { return 0; } }""",
}
# Calls what is on the card with scores of the command line, and writes its answer.
MAIN = """
#include <cstdio>
#include <cstdlib>
int main(int count, char** given) {
  static uint8_t image[192];
  for (int i = 1; i < count; ++i) scores[i - 1] = atoi(given[i]);
  CALL
}
"""
CALLS = {
    "binary": 'printf("%d", Classify(image));',
    "labels": """
      bool applies[3];
      printf("%d", Classify(image, applies));
      for (bool one : applies) printf(" %d", one);""",
}
LABELS = {"labels": ("red", "green", "blue"), "binary": ("dark", "li$ht")}


@pytest.fixture(scope="module", params=["labels", "binary"])
def made(request, tmp_path_factory):
    """The task, its classes, the folder of the kit and the Keras model."""
    classes = LABELS[request.param]
    units = 1 if request.param == "binary" else len(classes)
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    x = keras.layers.Flatten()(x)
    model = keras.Model(image, keras.layers.Dense(units, activation="sigmoid")(x))
    calibration = np.random.default_rng(0).random((20, 8, 8, 3))
    pair = {t: convert_tflite(model, t, calibration) for t in ("int8", "uint8")}
    entry = {
        "name": "small_int8",
        "accuracy": 0.9,
        "auc": 0.95,
        "macro_f1": 0.8,
        "macro_f1_ci": [0.7, 0.85],
        "mean_average_precision": 0.75,
        "per_class": [0.9] * len(classes),
        "f1_by_label": [0.8, 0.3, 0.9],
    }
    folder = tmp_path_factory.mktemp("kits") / request.param
    metrics = {"flagship": "small_int8", "models": [entry]}
    write_kit(folder, **pair, classes=classes, name="small", metrics=metrics)
    return request.param, classes, folder, model


def blocks(folder, language):
    """The blocks of a language on the card."""
    card = (folder / "MODEL_CARD.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_golden_scores_are_the_keras_models_within_two_steps(made):
    _, _, folder, model = made
    with np.load(folder / "golden.npz") as golden:
        expected = model(golden["images"] / np.float32(255)).numpy()
        assert golden["scores"].shape == expected.shape
        # On images like none that it was calibrated with.
        assert np.abs(golden["scores"] / 256 - expected).max() < 12 / 256
    assert not selftest.find_damage(folder)
    assert all(good for _, good in selftest.check_scores(folder))


def test_the_files_end_in_sigmoid_and_name_an_output_each(made):
    task, classes, folder, _ = made
    for dtype in ("int8", "uint8"):
        found = inspect_tflite(folder / f"model_{dtype}.tflite")
        assert found["head"] == "sigmoid"
        content = (folder / f"model_{dtype}.tflite").read_bytes()
        named = classes[1:] if task == "binary" else classes
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert tuple(archive.read("labels.txt").decode().splitlines()) == named
    assert read_tflite(folder / "model_int8.tflite").ops[-1].name == "LOGISTIC"
    assert tuple((folder / "labels.txt").read_text().splitlines()) == classes


def test_the_card_says_what_the_scores_are(made):
    task, _, folder, _ = made
    card = (folder / "MODEL_CARD.md").read_text()
    said = {
        "labels": (
            "the probabilities of 3 labels, of which several may apply, out",
            "| 80.00 (70.00, 85.00) | 75.00 | 90.00 |",
            "Weakest label: green, of an F1 score of 0.30.",
            "A label applies where its probability is above one half",
        ),
        "binary": (
            "the probability of li$ht, against dark, out",
            "| 90.00 | 95.00 |",
            "Every image is taken for li$ht where",
        ),
    }
    for text in said[task]:
        assert text in card
    assert "Every image is assigned one" not in card


def test_the_cards_kotlin_code_is_kotlin(made):
    kotlin = tree_sitter.Language(tree_sitter_kotlin.language())
    for source in blocks(made[2], "kotlin"):
        assert not tree_sitter.Parser(kotlin).parse(source.encode()).root_node.has_error


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not there")
def test_the_cards_cpp_code_answers_as_the_scores_say(made, tmp_path):
    task, _, folder, _ = made
    (card,) = blocks(folder, "cpp")
    methods = [f"TfLiteStatus {name}();" for name in re.findall(r"ops\.(\w+)\(", card)]
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        defined = [line.replace(";", " { return kTfLiteOk; }") for line in methods]
        (tmp_path / name).write_text(text.replace("METHODS", "\n".join(defined)))
    (tmp_path / "main.cc").write_text(card + MAIN.replace("CALL", CALLS[task]))
    flags = ("-std=c++17", "-Wall", "-Werror", f"-I{tmp_path}", f"-I{folder}")
    program = tmp_path / "main"
    run("g++", *flags, tmp_path / "main.cc", folder / "model.cc", "-o", program)
    # An int8 score of 0 is one half, which is not above it.
    if task == "binary":
        for score, answer in ((-128, b"0"), (0, b"0"), (1, b"1"), (127, b"1")):
            assert run(program, str(score)) == answer
    else:
        assert run(program, "0", "1", "127") == b"2 0 1 1"
        assert run(program, "-1", "-128", "0") == b"0 0 0 0"


def test_the_cards_python_code_says_what_applies(made):
    task, classes, folder, _ = made
    (script,) = blocks(folder, "python")
    said = run(sys.executable, "-I", "-c", script, cwd=folder).decode().splitlines()
    with np.load(folder / "golden.npz") as golden:
        scores = golden["scores"][0] / 256
    if task == "binary":
        label = classes[int(scores[0] > 0.5)]
        expected = [(label, max(scores[0], 1 - scores[0]))]
    else:
        expected = [(c, s) for c, s in zip(classes, scores, strict=True) if s > 0.5]
    found = [(line.split()[0], float(line.split()[1])) for line in said]
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=0.1)


@pytest.mark.parametrize("classes", [("one",), ("a", "b", "c")])
def test_a_single_output_has_two_names(made, classes, tmp_path):
    task, _, folder, _ = made
    if task != "binary":
        pytest.skip("of a single output")
    files = {t: folder / f"model_{t}.tflite" for t in ("int8", "uint8")}
    with pytest.raises(ValueError, match="single output, .*: name both. Received: "):
        write_kit(tmp_path / "kit", **files, classes=classes, name="small")


def test_tflite_micro_scores_as_the_reference_kernels(made):
    runtime = pytest.importorskip("tflite_micro", reason="needs tflite-micro").runtime
    content = (made[2] / "model_int8.tflite").read_bytes()
    with np.load(made[2] / "golden.npz") as golden:
        images, expected = golden["images"], golden["scores"].astype(int)
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=2**20)
    for image, scores in zip(images[:10], expected[:10], strict=True):
        interpreter.set_input((image[None].astype(np.int16) - 128).astype(np.int8), 0)
        interpreter.invoke()
        found = interpreter.get_output(0)[0].astype(int) + 128
        assert np.abs(found - scores).max() <= 1
