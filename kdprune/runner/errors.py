"""Which errors are the user's to mend, and the lines that say so."""

from __future__ import annotations

import re
import tempfile

from kdprune import _io
from kdprune.stages import InvalidRecipe

# An error of a Python function that TensorFlow calls, such as one that reads images.
_OF_PYTHON = re.compile(
    r"\b\w+Error: (.+?)\s*Traceback \(most recent call last\)", re.DOTALL
)


def explain(error: BaseException) -> list[str]:
    """The lines that tell a user what is wrong; none for what is no user's error."""
    if isinstance(error, InvalidRecipe):
        return [" ".join(problem.split()) for problem in error.problems]
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "ResourceExhaustedError"
    ):
        said = _io.first_line(error) if str(error) else "no more could be had"
        return [
            f"out of memory: {said}. {_io.describe_memory()}; take fewer or smaller "
            "images, a smaller batch or model, or end other programs"
        ]
    if _io.wants_space(error) and not getattr(error, "filename", None):
        # What is written to a place of the user's names it, temporary files do not.
        where = f"temporary files lie in {tempfile.gettempdir()}"
        return [f"{error}; {where}, and TMPDIR names another place"]
    # TensorFlow's own errors (no space) are neither of the two.
    of_tensorflow = type(error).__module__.startswith("tensorflow.")
    told, said = isinstance(error, (ValueError, OSError)), str(error)
    if of_tensorflow and (inside := _OF_PYTHON.search(said)):
        said = inside[1]
    return [" ".join(said.split())] if told or of_tensorflow else []
