"""The recipe's schema: every key with its type and range."""

from typing import Annotated, Any

import pydantic

from kdprune.config.settings import Count, Data, Name, Seed, Settings
from kdprune.config.stages import Stage


class Recipe(Settings):
    """All that determines a run; see `configs/` for examples.

    `baseline` is the stage that others are held against; `flagship` the quantize
    stage whose int8 and uint8 files are copied to the run's top, and `keep` the
    models that are saved there in half precision, all named beforehand. A stage in
    `seeds` is run with only the first so many seeds of the matrix, and so is what
    builds on it.
    """

    name: Name
    seed: Seed = 1
    data: Data
    baseline: Name | None = None
    flagship: Name | None = None
    keep: tuple[Name, ...] = ()
    seeds: dict[Name, Count] = {}
    matrix: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = {}
    stages: dict[Name, Stage] = pydantic.Field(min_length=1)
