"""Writes the flagship's ship kit."""

from __future__ import annotations

import pathlib
import shutil
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from kdprune import _io
from kdprune._log import logger
from kdprune.stages.base import FILES, MEASUREMENTS, Node, Result, Run, Stage
from kdprune.stages.settings import Name

# The types of a kit's files: int8 for microcontrollers, uint8 for apps.
DTYPES = ("int8", "uint8")
# Of the generated shapes among a kit's golden images, each class twice.
_SHAPES, _SHAPES_SIZE = 20, 32


class Kit(Stage):
    """Writes the flagship's ship kit: the folder that an app or a device needs."""

    kind: Literal["kit"]
    from_: Name = pydantic.Field(alias="from")
    """The evaluate stage."""
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    """The kit's name, and that of its folder."""
    version: str = "1"
    """The model's version, for the metadata and the card."""

    accepts = {"from": (MEASUREMENTS,)}
    role = "export"
    gathers = True

    def check_recipe(self, name: str, recipe: Any) -> None:
        if not recipe.flagship:
            raise ValueError(
                f"stages.{name}: a kit is the flagship's; expected `flagship` in the "
                "recipe, got none"
            )

    def check(self, run: Run, node: Node) -> None:
        from kdprune.kit.build import check_names

        super().check(run, node)
        try:
            check_names(self.name, run.dataset.classes)
        except ValueError as error:
            raise ValueError(f"stages.{node.stage}: {error}") from error

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Writes the flagship's ship kit, with what was measured of it."""
        from kdprune import kit, tflite

        for left in [path for path in folder.iterdir() if path.is_dir()]:
            shutil.rmtree(left)
        measured = node.parent_of("from")
        place = folder / self.name
        files = flagship_files(run, measured)
        if missing := [dtype for dtype in DTYPES if dtype not in files]:
            raise ValueError(
                f"stages.{node.stage}: expected the flagship's files. Received: no "
                f"{' and no '.join(missing)} file, which the export gate refused; its "
                "reasons stand in the record of the export stage"
            )
        kit.write_kit(
            place,
            **files,
            # What the export gate has found to be the model's.
            input_range=tflite.input_bounds(files["int8"]),
            classes=run.dataset.classes,
            name=self.name,
            version=self.version,
            images=_generate_shapes(run.dataset.image_shape),
            metrics=_io.read_object(run.output(measured, "metrics.json")),
        )
        logger.info("kit: %s", place)
        written = sorted(f"{place.name}/{path.name}" for path in place.iterdir())
        shown = [f"model_{dtype}.tflite" for dtype in DTYPES]
        return Result(
            {}, written, published={name: f"{place.name}/{name}" for name in shown}
        )


def flagship_files(run: Run, measured: Node) -> dict[str, pathlib.Path]:
    """The flagship's exported files by type, those that an evaluate node measures."""
    flagship = run.recipe.flagship
    for parent in measured.all_parents():
        if parent.settings.gives == FILES and flagship in parent.parents:
            made = (run.record(parent) or {"outputs": {}})["outputs"]
            names = {dtype: f"{flagship}.{dtype}.tflite" for dtype in DTYPES}
            return {
                dtype: run.folder / parent.name / name
                for dtype, name in names.items()
                if name in made
            }
    return {}


def _generate_shapes(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Generated shapes, uint8, in the size and the channels of the images."""
    from kdprune.data import shapes

    height, width, channels = image_shape
    images = shapes.generate(_SHAPES, _SHAPES_SIZE, 0, shapes.TEST).images
    rows, columns = (np.arange(n) * _SHAPES_SIZE // n for n in (height, width))
    images = images[:, rows[:, None], columns]
    if channels == 1:
        return np.rint(images.mean(axis=-1, keepdims=True)).astype(np.uint8)
    # Of other channels than three, colours take turns.
    return images[..., np.arange(channels) % 3]
