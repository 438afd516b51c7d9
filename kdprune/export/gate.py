"""The export gate: what a `.tflite` file has to prove before it is handed over."""

import os
import pathlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_EIGHT_BIT = {"int8": -128, "uint8": 0}  # dtype: zero point of [0, 1] data
_ONE_SIDED_95 = 1.6449  # Standard deviations.


def _names(enum):
    return {value: name for name, value in vars(enum).items() if name.isupper()}


_TYPES = _names(schema.TensorType)
_OPS = _names(schema.BuiltinOperator)


def inspect_tflite(data):
    """Reads from a file how it computes and what it takes and returns.

    Args:
        data: The file's content, or its path.

    Returns:
        Dict of `ops` (name to count), `float_ops` (list of `op` and `tensor`, the
        name of its output), and `input` and `output` (each `dtype`, `shape`,
        `scale`, `zero_point`; the last two None where not quantized).

    Raises:
        ValueError: If it is not a `.tflite` file of one input and one output.
    """
    if isinstance(data, str | os.PathLike):
        data = pathlib.Path(data).read_bytes()
    if bytes(data[4:8]) != b"TFL3":
        raise ValueError(
            "expected a .tflite file (identifier TFL3 at byte 4). "
            f"Received: {bytes(data[:8])!r}"
        )
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    main = model.subgraphs[0]
    if len(main.inputs) != 1 or len(main.outputs) != 1:
        raise ValueError(
            "expected a .tflite file with one input and one output. "
            f"Received: {len(main.inputs)} and {len(main.outputs)}"
        )
    ops, float_ops = {}, []
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            code = model.operatorCodes[operator.opcodeIndex]
            # Files from before the 128th op have the code in the older field alone.
            op = _OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]
            ops[op] = ops.get(op, 0) + 1
            ends = (operator.inputs, operator.outputs)
            indices = [index for end in ends if end is not None for index in end]
            tensors = [graph.tensors[index] for index in indices if index >= 0]
            if any("FLOAT" in _TYPES[tensor.type] for tensor in tensors):
                name = graph.tensors[operator.outputs[0]].name.decode()
                float_ops.append({"op": op, "tensor": name})
    return {
        "ops": ops,
        "float_ops": float_ops,
        "input": _describe(main.tensors[main.inputs[0]]),
        "output": _describe(main.tensors[main.outputs[0]]),
    }


def check_tflite(
    data,
    keras_scores,
    tflite_scores,
    labels,
    *,
    max_disagreement=0.05,
    max_drop=0.02,
):
    """Refuses a `.tflite` file that does not do what its Keras model does.

    An 8-bit file must compute in integers throughout (Quantize between int8 and
    uint8 at its ends apart) and take images as bytes: input scale exactly 1/255,
    zero point 0 (uint8) or -128 (int8). Scores, of any file, must agree with the
    Keras model's in the best class and must not lose accuracy against it.

    The drop is an estimate from some images, so the gate judges a bound: it fails a
    file that *surely* loses more than the limit, with the whole one-sided 95 %
    interval beyond it. On 5,000 images of which 2.5 % are classified otherwise the
    bound lies 0.37 points below the measured drop: with `max_drop=0.01`, a measured
    drop of 1.4 points fails and one of 1.3 does not. The gate finds broken
    conversions and does not call an honest file broken for chance; who needs proof
    that a file loses less than a limit reads the other end of `drop_interval`.
    Agreement alone proves little: MLPerf Tiny's int8 ResNet-8 differs on 2.5 % of
    images and loses 0.2 points.

    Args:
        data: The file's content, or its path.
        keras_scores: Scores of the Keras model the file was made from, shape
            `(n, classes)`, logits or probabilities: for QAT the QAT model.
        tflite_scores: The file's scores on the same images, same shape.
        labels: The images' classes, shape `(n,)`; validation images, not test.
        max_disagreement: Largest share of images whose best class may differ.
        max_drop: Largest accuracy the file may lose, as a share of images.

    Returns:
        What `inspect_tflite` and `paired_drop` return: JSON-able.

    Raises:
        ValueError: If the file fails: what, by how much, and what to do.
    """
    figures = inspect_tflite(data)
    _check_integers(figures)
    figures |= paired_drop(keras_scores, tflite_scores, labels)
    n = figures["images"]
    if figures["disagreement"] > max_disagreement:
        raise ValueError(
            f"the .tflite file and its Keras model disagree on "
            f"{figures['disagreement']:.1%} of {n} images (limit "
            f"{max_disagreement:.1%}): check that both get the same images, use more "
            "calibration images, or train quantization-aware"
        )
    if figures["drop_interval"][0] > max_drop:
        raise ValueError(
            f"the .tflite file loses {100 * figures['drop']:.2f} points of accuracy "
            f"({figures['keras_accuracy']:.2%} to {figures['tflite_accuracy']:.2%} on "
            f"{n} images; at least {100 * figures['drop_interval'][0]:.2f} with 95 % "
            f"confidence; limit {100 * max_drop:.2f}): use more calibration images, "
            "or train quantization-aware"
        )
    return figures


def _check_integers(figures):
    dtype = figures["input"]["dtype"]
    if dtype not in _EIGHT_BIT:
        return
    float_ops = figures["float_ops"]
    if float_ops:
        # The conversions to and from float only stand around what needs them.
        op = next((op for op in float_ops if "QUANTIZE" not in op["op"]), float_ops[0])
        raise ValueError(
            f"{len(float_ops)} op(s) of the {dtype} file work in float, first "
            f"{op['op']} ({op['tensor']}): replace the layer by one that int8 supports"
        )
    for end in ("input", "output"):
        scale, zero = figures[end]["scale"], figures[end]["zero_point"]
        expected = float(np.float32(1 / 255) if end == "input" else np.float32(1 / 256))
        if (figures[end]["dtype"], scale, zero) != (dtype, expected, _EIGHT_BIT[dtype]):
            raise ValueError(
                f"the file's {end} is {figures[end]['dtype']} with scale {scale} and "
                f"zero point {zero}; expected {dtype}, {expected} and "
                f"{_EIGHT_BIT[dtype]}: convert it by convert_tflite, with training "
                "images in [0, 1]"
            )


def paired_drop(keras_scores, tflite_scores, labels):
    """The accuracy a file loses against its model, on the same images.

    Args:
        keras_scores: Scores of the model that sets the standard, shape
            `(n, classes)`, logits or probabilities.
        tflite_scores: The file's scores on the same images, same shape.
        labels: The images' classes, shape `(n,)`.

    Returns:
        Dict of `images`, `disagreement` (share of images whose best class differs),
        `keras_accuracy`, `tflite_accuracy`, `drop` (their difference),
        `drop_interval` (one-sided 95 % bounds, low and high) and `drop_bound`:
        JSON-able. `drop_bound` is the upper bound for who needs proof: it counts
        one image more as lost and one as gained (Bonett & Price, 2012,
        https://doi.org/10.3102/1076998611411915), so that no difference on a few
        images is not taken for none at all: 2.3 / n there, about the same as the
        interval's where many differ.

    Raises:
        ValueError: If the shapes do not fit or there are no images.
    """
    keras_scores, tflite_scores = np.asarray(keras_scores), np.asarray(tflite_scores)
    labels = np.asarray(labels)
    if (
        keras_scores.ndim != 2
        or tflite_scores.shape != keras_scores.shape
        or labels.shape != keras_scores.shape[:1]
        or not len(labels)
    ):
        raise ValueError(
            "scores must have the shape (n, classes) twice and labels (n,), n > 0. "
            f"Received: {keras_scores.shape}, {tflite_scores.shape}, {labels.shape}"
        )
    before, after = keras_scores.argmax(axis=1), tflite_scores.argmax(axis=1)
    drops = (before == labels).astype(float) - (after == labels)
    n, drop = len(labels), float(drops.mean())
    margin = _ONE_SIDED_95 * float(drops.std()) / n**0.5
    more, flips = n + 2, float(np.abs(drops).sum()) + 2
    shift = drop * n / more
    bound = shift + _ONE_SIDED_95 * ((flips / more - shift**2) / more) ** 0.5
    disagreement = float((before != after).mean())
    return {
        "images": n,
        "disagreement": disagreement,
        "keras_accuracy": float((before == labels).mean()),
        "tflite_accuracy": float((after == labels).mean()),
        "drop": drop,
        "drop_interval": [drop - margin, drop + margin],
        "drop_bound": bound,
    }


def _describe(tensor):
    quantization = tensor.quantization
    scales = [] if quantization is None else quantization.scale
    quantized = scales is not None and len(scales) == 1
    return {
        "dtype": _TYPES[tensor.type].lower(),
        "shape": [int(size) for size in tensor.shape],
        "scale": float(scales[0]) if quantized else None,
        "zero_point": int(quantization.zeroPoint[0]) if quantized else None,
    }
