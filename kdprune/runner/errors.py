"""Which errors are the user's to mend, and the lines that say so."""

from __future__ import annotations

from kdprune import _io
from kdprune.stages import InvalidRecipe


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
    # TensorFlow's own errors (no space) are neither of the two.
    told = isinstance(error, (ValueError, OSError)) or (
        type(error).__module__.startswith("tensorflow.")
    )
    return [" ".join(str(error).split())] if told else []
