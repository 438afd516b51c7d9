"""Trains a model on labels alone."""

from typing import Literal

from kdprune.stages.trained import Started


class Train(Started):
    """Trains a model on labels alone: a teacher, a baseline, or a model further."""

    kind: Literal["train"]
