"""Files without ballast: the same model in fewer bytes, proven bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdprune._io import first_line
from kdprune.tflite.format import File, prefix, read_content, read_graphs, share_content
from kdprune.tflite.interpreter import RESOLVERS, open_content, try_out

# Plain loops take a tenth of a second for an image and 12 M multiplications.
_INPUTS, _INPUTS_OF_REFERENCE = 16, 2


@dataclass(frozen=True)
class Slimmed:
    """A file, smaller where that changes nothing.

    Attributes:
        content: The file's content: the smaller one, or the original.
        before: Bytes of the original.
        after: Bytes of `content`.
        proof: `{kernels: inputs on which all outputs were bit-equal}`; kernels that
            cannot run the original are left out.
        reason: Why the original was kept, None where it was not.
    """

    content: bytes
    before: int
    after: int
    proof: dict[str, int]
    reason: str | None = None


def slim_tflite(file: File) -> Slimmed:
    """Makes a `.tflite` file smaller without changing what it computes.

    Content that is equal is stored once and debug names are dropped
    (`format.share_content`); then both files are run on random inputs, and the
    original is kept unless all outputs are equal to the last bit on every set of
    kernels that runs it.

    Args:
        file: The file's path or content, of any maker.

    Returns:
        The file, and the proof.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.tflite` model, is damaged, or no kernels run it, so
            that nothing could be proven.

    Example:
        >>> slimmed = slim_tflite("model.tflite")
        >>> pathlib.Path("smaller.tflite").write_bytes(slimmed.content)
    """
    content = read_content(file)

    def kept(reason: str, proof: dict[str, int]) -> Slimmed:
        return Slimmed(content, len(content), len(content), proof, reason)

    smaller = share_content(file)
    if len(smaller) >= len(content):
        return kept("nothing in it is stored twice", {})
    if _interface(smaller) != _interface(content):
        return kept("its signatures, inputs or outputs would change", {})
    proof: dict[str, int] = {}
    refusals = []
    for resolver in RESOLVERS:
        count = _INPUTS_OF_REFERENCE if resolver == "reference" else _INPUTS
        try:
            expected = _outputs(content, resolver, count)
        except (ValueError, RuntimeError) as error:
            refusals.append(f"{resolver}: {first_line(error, 100)}")
            continue
        try:
            received = _outputs(smaller, resolver, count)
        except (ValueError, RuntimeError) as error:
            return kept(f"{resolver} does not run it: {first_line(error)}", proof)
        if not _equal(expected, received):
            return kept(f"its outputs on {resolver} would change", proof)
        proof[resolver] = count
    if not proof:
        raise ValueError(
            f"{prefix(file)}no kernels run the file, so that it can't be shown that a "
            f"smaller one computes the same ({'; '.join(refusals)})"
        )
    return Slimmed(smaller, len(content), len(smaller), proof)


def _interface(content: bytes) -> Any:
    """What callers know of a file: signatures, inputs and outputs."""
    interpreter = open_content(content)
    ends = [
        [
            (d["name"], d["shape"].tolist(), d["shape_signature"].tolist())
            + (d["dtype"], d["quantization"])
            for d in details
        ]
        for details in (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
    ]
    graphs = [
        (len(g.tensors), g.ops, g.inputs, g.outputs) for g in read_graphs(content)
    ]
    return ends, interpreter.get_signature_list(), graphs


def _outputs(content: bytes, resolver: str, count: int) -> list[list[NDArray]]:
    try_out(content, resolver=resolver, one_image=False)
    interpreter = open_content(content, resolver)
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], _random(random, detail))
        interpreter.invoke()
        found.append(
            [
                interpreter.get_tensor(detail["index"]).copy()
                for detail in interpreter.get_output_details()
            ]
        )
    return found


def _random(random: np.random.Generator, detail: dict) -> NDArray:
    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    if dtype.kind == "b":
        return random.random(shape) < 0.5
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return random.random(shape).astype(dtype)


def _equal(expected: list[list[NDArray]], received: list[list[NDArray]]) -> bool:
    """Whether all arrays are the same bits; NaN is equal to itself there."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for one, other in zip(expected, received, strict=True)
        for a, b in zip(one, other, strict=True)
    )
