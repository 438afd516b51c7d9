"""How much working memory TFLite Micro needs for a model."""

import contextlib
import os
import re
import sys
import tempfile

import numpy as np

_LARGE = 64 * 2**20  # Bytes to try with: far more than a microcontroller has.


def measure_arena(data):
    """Runs an int8 file on TFLite Micro and reads how much of its arena it used.

    The figure is that of this machine: with pointers of 32 bits a device needs
    somewhat less for the interpreter's tables, and its optimized kernels may need
    more for their own buffers.

    Args:
        data: The `.tflite` file's content.

    Returns:
        The arena's size in bytes, or None where `tflite-micro` is not installed.

    Raises:
        ValueError: If TFLite Micro does not run the file, with what it said.
    """
    try:
        from tflite_micro import runtime
    except ImportError:
        return None
    with _captured_stderr() as said:
        try:
            interpreter = runtime.Interpreter.from_bytes(data, arena_size=_LARGE)
            taken = interpreter.get_input_details(0)
            interpreter.set_input(np.zeros(taken["shape"], taken["dtype"]), 0)
            interpreter.invoke()
            interpreter.print_allocations()
            failure = None
        except RuntimeError as error:
            failure = error
    found = re.search(rb"Arena allocation total (\d+) bytes", said[0])
    if failure is not None or found is None:
        lines = map(str.strip, said[0].decode(errors="replace").splitlines())
        reason = next(filter(None, lines), failure)
        raise ValueError(f"TFLite Micro does not run this model: {reason}")
    return int(found[1])


@contextlib.contextmanager
def _captured_stderr():
    """Collects what C++ writes to stderr into the one item of the list it gives."""
    said = []
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            said.append(file.read())
