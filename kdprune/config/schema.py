"""The recipe's schema: every key with its type and range."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, Union

import pydantic

from kdprune._registry import nearest
from kdprune.stages import KINDS, Stage
from kdprune.stages.settings import Count, Name, Seed, Settings, Share

# A module's dotted name.
Module = Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")
]


class Data(Settings):
    """Which images, and how they are split.

    `dataset` is a name of `data.DATASETS`, to which plugins add; `options` are what
    the loader of such a data set takes beside the keys that are here.
    """

    dataset: str
    validation: Share = 0.1
    calibration: Count = 500
    seed: Seed = 0
    path: str | None = None
    image_size: tuple[Count, Count] | Count | None = None
    channels: Literal[1, 3] | None = None
    test: Share | None = None
    train_images: Count | None = None
    test_images: Count | None = None
    options: dict[str, Any] = {}

    @pydantic.field_validator("dataset")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from kdprune.data import DATASETS

        if name not in DATASETS:
            raise ValueError(
                f"expected one of {', '.join(DATASETS)}, got {name!r}"
                f"{nearest(name, DATASETS)}"
            )
        return name

    def loading(self) -> dict[str, Any]:
        """What `data.load_dataset` takes beside the name."""
        excluded = {"dataset", "options"}
        return {**self.model_dump(exclude_none=True, exclude=excluded), **self.options}


class Recipe(Settings):
    """All that determines a run; see `configs/` for examples.

    `baseline` is the stage that others are held against; `flagship` the quantize
    stage whose int8 and uint8 files are copied to the run's top, and `save_models`
    the models that are saved there in half precision, all named beforehand. A stage
    in `seeds` is run with only the first so many seeds of the matrix, and so is what
    builds on it. `plugins` are modules that are imported before the recipe is
    checked, and register what it names.
    """

    name: Name
    plugins: tuple[Module, ...] = ()
    seed: Seed = 1
    data: Data
    baseline: Name | None = None
    flagship: Name | None = None
    save_models: tuple[Name, ...] = ()
    seeds: dict[Name, Count] = {}
    matrix: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = {}
    stages: dict[Name, Stage] = pydantic.Field(min_length=1)

    omit_if_default = ("plugins",)
    renamed = {"keep": "save_models"}


def recipe_schema() -> type[Recipe]:
    """The recipe's class with the kinds of stages that are registered now."""
    return _with_kinds(tuple(KINDS.values()))


@functools.lru_cache(maxsize=8)
def _with_kinds(kinds: tuple[type[Stage], ...]) -> type[Recipe]:
    stage = Annotated[
        Union[kinds],  # type: ignore[valid-type]  # noqa: UP007  # Made at run time.
        pydantic.Field(discriminator="kind"),
    ]
    return pydantic.create_model(
        "Recipe",
        __base__=Recipe,
        __doc__=Recipe.__doc__,
        stages=(dict[Name, stage], pydantic.Field(min_length=1)),  # type: ignore[valid-type]
    )
