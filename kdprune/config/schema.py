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
    """`cifar10`, `folder`, `shapes` (generated), or what a plugin has registered."""
    validation: Share = 0.1
    """Share of the training files that choices are made on."""
    calibration: Count = 500
    """Number of training images that set the ranges of int8 activations."""
    seed: Seed = 0
    """Seed of the splits, and of generated images."""
    path: str | None = None
    """Where the images of `folder` are."""
    image_size: tuple[Count, Count] | Count | None = None
    """Images of `folder` are resized to it: pixels, or [height, width]."""
    channels: Literal[1, 3] | None = None
    """Images of `folder` are read as gray (1) or in colour (3)."""
    test: Share | None = None
    """Share of the files of `folder` that are test images, where none are set apart."""
    train_images: Count | None = None
    """Number of generated training images."""
    test_images: Count | None = None
    """Number of generated test images."""
    options: dict[str, Any] = {}
    """What the loader of a registered data set takes."""

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
    """Names the run; its folder is runs/NAME."""
    plugins: tuple[Module, ...] = ()
    """Modules to import first; they register losses, kinds of stages and the like."""
    seed: Seed = 1
    """Seed of all stages that have none of their own."""
    data: Data
    """The images."""
    baseline: Name | None = None
    """The stage that others are compared with."""
    flagship: Name | None = None
    """The quantize stage whose files are copied to the top of the run."""
    save_models: tuple[Name, ...] = ()
    """Stages whose models are saved at the top of the run."""
    seeds: dict[Name, Count] = {}
    """Stages that are run with only the first so many seeds of the matrix."""
    matrix: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = {}
    """Keys with several values each; the run is made with each combination."""
    stages: dict[Name, Stage] = pydantic.Field(min_length=1)
    """The stages by name."""

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
