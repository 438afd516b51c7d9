"""Trains a student on labels and a teacher."""

from __future__ import annotations

from typing import Literal

import pydantic

from kdprune.stages.trained import Started, Taught


class Distill(Started, Taught):
    """Trains a student on labels and a teacher."""

    kind: Literal["distill"]

    accepts = {**Started.accepts, **Taught.accepts}
    role = "distill"

    @pydantic.model_validator(mode="after")
    def _has_teacher(self) -> Distill:
        if not self.taught:
            raise ValueError("expected `teacher` or `soft_labels`, got neither")
        return self
