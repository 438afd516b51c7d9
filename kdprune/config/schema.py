"""The recipe's schema: every key with its type and range."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, Union

import pydantic

from kdprune._registry import nearest
from kdprune.stages import KINDS, Stage
from kdprune.stages.settings import Count, Name, Seed, Settings, Share

# What starts from each other is followed step by step, as deep as Python goes.
MOST_STAGES = 200

# A module's dotted name.
Module = Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")
]


class Data(Settings):
    """Which images, and how they are split."""

    dataset: str
    """`cifar10`, `folder`, `shapes`, a file of arrays `FILE.npz`, or one that a plugin
    registered; see [Data](data.md)."""
    validation: Count | Share = 0.1
    """Share of the training images that is held out for choices, or their number.
    Unused where the data has validation images."""
    calibration: Count = 500
    """Training images that quantization takes ranges of activations from."""
    seed: Seed = 0
    """Seed of the splits, and of generated images."""
    task: Literal["classes", "labels", "binary"] | None = None
    """What the labels mean: one of several classes, labels of which several may apply,
    or two classes by a single unit. By default `labels` of rows of zeros
    and ones, else `classes`."""
    path: str | None = None
    """`folder`, `npz`: where the images are, relative to `--data-dir` if that is
    given."""
    image_size: tuple[Count, Count] | Count | None = None
    """Size that images are resized to: `[height, width]`, or one number for both."""
    channels: Literal[1, 3] | None = None
    """`folder`: 3 for RGB, 1 for gray."""
    resize: Literal["stretch", "crop", "pad"] | None = None
    """`folder`: how images of other proportions come to `image_size`: `stretch` (if
    left out), `crop` the center, or `pad` with black."""
    on_error: Literal["stop", "skip"] | None = None
    """`folder`: `stop` (if left out) at files that can't be used, naming all, or
    `skip` and list them."""
    range: tuple[float, float] | None = None
    """`FILE.npz`: `[low, high]`, what the values lie in; [0, 1] of floats and [0, 255]
    of bytes if left out."""
    classes: tuple[str, ...] | None = None
    """`FILE.npz`: class names in the order of the labels."""
    test: Count | Share | None = None
    """`folder`, `FILE.npz`: share or number of the images held out as test set where
    there is none."""
    train_images: Count | None = None
    """`shapes`: training images to generate."""
    test_images: Count | None = None
    """`shapes`: test images to generate."""
    unlabelled_images: Count | None = None
    """`shapes`: images without labels to generate, which teachers show students."""
    options: dict[str, Any] = {}
    """More arguments of the data set's loader."""

    omit_if_default = ("task",)

    @pydantic.field_validator("dataset")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from kdprune.data import DATASETS

        if name not in DATASETS and not name.endswith(".npz"):
            known = f"{', '.join(DATASETS)} or FILE.npz"
            raise ValueError(
                f"expected one of {known}, got {name!r}{nearest(name, DATASETS)}"
            )
        return name

    def loading(self) -> dict[str, Any]:
        """What `data.load_dataset` takes beside the name."""
        excluded = {"dataset", "options"}
        return {**self.model_dump(exclude_none=True, exclude=excluded), **self.options}


class Recipe(Settings):
    """All that determines a run; see `configs/` for examples."""

    name: Name
    """The run's name, and that of its folder: `runs/NAME`."""
    plugins: tuple[Module, ...] = ()
    """Python modules to import first: they [register](extending.md) what the recipe
    names."""
    seed: Seed = 1
    """Seed of every stage that has none of its own."""
    data: Data
    """The images, and how they are split."""
    baseline: Name | None = None
    """The stage that others are compared with in the report."""
    flagship: Name | None = None
    """The quantize stage whose int8 and uint8 files are copied to the run's root."""
    save_models: tuple[Name, ...] = ()
    """Stages whose models are copied to the run's root as `NAME.keras`, weights in
    half precision."""
    seeds: dict[Name, Count] = {}
    """Stages that run with only the first so many seeds of the matrix, and what
    builds on them."""
    matrix: dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]] = {}
    """Values of `seed` or of keys such as `stages.student.temperature`: every
    combination is run. See [Studies](studies.md)."""
    stages: dict[Name, Stage] = pydantic.Field(min_length=1, max_length=MOST_STAGES)
    """The stages by name; each has a `kind`."""

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
        stages=(
            dict[Name, stage],
            pydantic.Field(min_length=1, max_length=MOST_STAGES),
        ),
    )
