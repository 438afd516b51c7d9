"""Which errors are the user's to mend, and the lines that say so."""

from __future__ import annotations

from kdprune.stages import InvalidRecipe


def explain(error: BaseException) -> list[str]:
    """The lines that tell a user what is wrong; none for what is no user's error."""
    if isinstance(error, InvalidRecipe):
        return [" ".join(problem.split()) for problem in error.problems]
    # TensorFlow's own errors (no memory, no space) are neither of the two.
    told = isinstance(error, (ValueError, OSError)) or (
        type(error).__module__.startswith("tensorflow.")
    )
    return [" ".join(str(error).split())] if told else []
