"""Holds post-training int8 by kdprune against Google's ai-edge-quantizer.

Both quantize the same model with the same calibration images, several draws of them;
every file is scored on all test images and timed, interleaved with the others, on the
runtime. Needs `pip install ai-edge-quantizer`.

Usage:
    python scripts/bench_quantizers.py results/quantization/student.keras \\
        --dataset cifar10 --data-dir DIR [--draws 3] [--json OUT]
"""

import argparse
import importlib.metadata
import pathlib
import statistics
import sys
import tempfile

import kdprune
from kdprune import records
from kdprune.benchmark import latency
from kdprune.data import to_float
from kdprune.data.splits import stratified_sample

OURS = {
    "kdprune, min-max": {},
    "kdprune, mse, biases corrected": {"range_method": "mse", "correct_bias": True},
}
THEIRS = "ai-edge-quantizer, static int8"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a Keras model file")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--draws", type=int, default=3, help="of the images (3)")
    parser.add_argument("--images", type=int, default=500, help="of a draw (500)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    try:
        theirs = importlib.metadata.version("ai-edge-quantizer")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("expected ai-edge-quantizer: pip install ai-edge-quantizer")
    model = kdprune.load_model(options.model)
    data = kdprune.load_dataset(options.dataset, data_dir=options.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        files = {"float": [pathlib.Path(folder) / "float.tflite"]}
        files["float"][0].write_bytes(kdprune.convert_tflite(model))
        for draw in range(options.draws):
            made = quantize(model, files["float"][0], data, draw, options.images)
            for name, path in save(made, pathlib.Path(folder), draw).items():
                files.setdefault(name, []).append(path)
        found = measure(files, data.test)
    if options.json:
        content = {"command": records.command(), "models": found}
        content["ai_edge_quantizer"] = theirs
        content |= {"machine": records.machine(), "versions": records.versions()}
        records.write_json(options.json, content)


def quantize(model, float_file, data, draw, count):
    """The int8 files of one draw of calibration images, by the quantizer's name."""
    drawn = stratified_sample(data.train.labels, count, (draw, 3))
    images = data.train.images[drawn]
    made = {
        name: kdprune.convert_tflite(model, "int8", images, **arguments)
        for name, arguments in OURS.items()
    }
    made[THEIRS] = quantize_static(float_file, images)
    return made


def save(made, folder, draw):
    """Writes the files of one draw, each to a path of its own.

    Args:
        made: The files' content by the quantizer's name.
        folder: Where to.
        draw: The draw's number.

    Returns:
        The files' paths by the quantizer's name.

    Raises:
        FileExistsError: If a path is taken: no file may stand for another.
    """
    paths = {}
    for place, (name, content) in enumerate(made.items()):
        paths[name] = folder / f"{draw}-{place}.tflite"
        with open(paths[name], "xb") as file:
            file.write(content)
    return paths


def quantize_static(float_file, images):
    """ai-edge-quantizer's static int8 of a float file, its own default ranges."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(float_file), recipe.static_wi8_ai8())
    interpreter = kdprune.tflite.open_interpreter(float_file)
    ((signature, ends),) = interpreter.get_signature_list().items()
    (name,) = ends["inputs"]
    samples = [{name: image[None]} for image in to_float(images)]
    statistics_of = tool.calibrate({signature: samples})
    return bytes(tool.quantize(statistics_of).quantized_model)


def measure(files, test):
    """Scores every file; times the first of each name, interleaved."""
    timed = latency.measure_latencies([paths[0] for paths in files.values()])
    found = []
    for (name, paths), times in zip(files.items(), timed, strict=True):
        entries = [
            kdprune.evaluate_model(path, test.images, test.labels, latency=False).entry
            for path in paths
        ]
        scores = [100 * entry["accuracy"] for entry in entries]
        deviation = statistics.stdev(scores) if len(scores) > 1 else None
        found.append(
            {
                "name": name,
                "accuracies": scores,
                "bytes": entries[0]["bytes"],
                "bytes_gzip": entries[0]["bytes_gzip"],
                "latency_ms_p50": times["latency_ms_p50"],
                "latency_ratio": times["ratio"],
            }
        )
        spread = f" ± {deviation:.2f}" if deviation is not None else ""
        print(
            f"{name:32} {statistics.mean(scores):.2f}{spread} %  "
            f"{entries[0]['bytes']:,} bytes  {times['latency_ms_p50']:.3f} ms",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
