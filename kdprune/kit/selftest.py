"""Checks that this kit is whole, and that its models compute what they should.

    pip install numpy ai-edge-litert
    python selftest.py

Ends with status 0 if all is well, with 1 if not, and names the file at fault.
"""

import hashlib
import json
import pathlib
import sys

MODELS = ("model_int8.tflite", "model_uint8.tflite")
REFERENCE_LIMIT = 1  # Steps of 1/256 between machines, on the same plain kernels.


def main():
    folder = pathlib.Path(__file__).resolve().parent
    problems = find_damage(folder)
    for what, good in check_scores(folder) if not problems else ():
        if good:
            print(f"ok      {what}")
        else:
            problems.append(what)
    for problem in problems:
        print(f"FAILED  {problem}")
    if not problems:
        print("The kit is whole, and its models compute what they should.")
    return 1 if problems else 0


def find_damage(folder):
    """Lists the files that are missing or are not what the manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
        whole = manifest["sha256"] == digest_of_manifest(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ["manifest.json: missing or corrupted"]
    if not whole:
        return ["manifest.json: corrupted"]
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256(path.read_bytes()) != expected["sha256"]:
            problems.append(f"{name}: corrupted (SHA-256 is not the manifest's)")
    return problems


def digest_of_manifest(manifest):
    """SHA-256 of all that the manifest says, its own digest apart."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return sha256(json.dumps(said, sort_keys=True).encode())


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def check_scores(folder):
    """Runs both models over the golden images; says of each if it does as expected.

    Returns:
        Pairs of what was found and whether that is good.
    """
    try:
        import numpy as np

        import_runtime()
    except ImportError as error:
        return [(f"{error}: pip install numpy ai-edge-litert", False)]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    with np.load(folder / "golden.npz") as golden:
        images, expected = golden["images"], golden["scores"]
    limits = {"reference": REFERENCE_LIMIT, "default": manifest["kernel_limit"]}
    results = []
    for name in MODELS:
        content = (folder / name).read_bytes()
        for kernels, limit in limits.items():
            steps = deviation(score(content, images, kernels), expected)
            what = (
                f"{name}: {len(images)} images, {kernels} kernels: "
                f"scores differ by up to {steps}/256 (limit {limit})"
            )
            results.append((what, steps <= limit))
    return results


def import_runtime():
    from ai_edge_litert import interpreter

    return interpreter


def deviation(scores, expected):
    """The largest difference, in steps of 1/256."""
    return int(abs(scores.astype(int) - expected.astype(int)).max())


def score(content, images, kernels="default"):
    """Runs an 8-bit model over images.

    Args:
        content: The `.tflite` file's bytes.
        images: uint8 pixels, shape `(n, height, width, channels)`.
        kernels: "default" for those of this machine, or "reference".

    Returns:
        Probabilities in steps of 1/256, uint8 `(n, outputs)`.
    """
    import numpy as np

    runtime = import_runtime()
    resolvers = runtime.OpResolverType
    interpreter = runtime.Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=(
            resolvers.BUILTIN_REF if kernels == "reference" else resolvers.AUTO
        ),
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    target = interpreter.get_output_details()[0]
    # An int8 model takes and gives bytes minus 128.
    shift = 128 if source["dtype"] == np.int8 else 0
    scores = []
    for image in images.astype(np.int16) - shift:
        interpreter.set_tensor(source["index"], image[None].astype(source["dtype"]))
        interpreter.invoke()
        scores.append(interpreter.get_tensor(target["index"])[0] + np.int16(shift))
    return np.array(scores, np.uint8)


if __name__ == "__main__":
    sys.exit(main())
