"""How much working memory TFLite Micro needs for a model."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys

_LARGE = 64 * 2**20  # Bytes to try with: far more than a microcontroller has.
_SECONDS = 600
# In a process of its own: what the interpreter says goes to its standard error, and a
# model that crashes it ends nothing else.
_PROGRAM = """
import sys
import numpy as np
from tflite_micro import runtime

content = sys.stdin.buffer.read()
try:
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=int(sys.argv[1]))
    taken = interpreter.get_input_details(0)
    interpreter.set_input(np.zeros(taken["shape"], taken["dtype"]), 0)
    interpreter.invoke()
    interpreter.print_allocations()
except RuntimeError as error:
    sys.exit(str(error))
"""


def measure_arena(data: bytes) -> int | None:
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
    if importlib.util.find_spec("tflite_micro") is None:
        return None
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(_LARGE)],
        input=data,
        capture_output=True,
        timeout=_SECONDS,
    )
    said = done.stderr.decode(errors="replace")
    found = re.search(r"Arena allocation total (\d+) bytes", said)
    if done.returncode or found is None:
        lines = list(filter(None, map(str.strip, said.splitlines())))
        reason = lines[0] if lines else "it says nothing"
        if done.returncode < 0:
            reason = f"it ends by {signal.Signals(-done.returncode).name}"
        elif lines and lines[0].startswith("Traceback"):
            reason = lines[-1]
        raise ValueError(f"TFLite Micro does not run this model: {reason}")
    return int(found[1])
