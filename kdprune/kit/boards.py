"""Boards and phones by name: what a model has to fit into."""

from __future__ import annotations

import importlib.resources
import os
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from kdprune._plain import read_yaml, read_yaml_file
from kdprune._registry import nearest

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# What an application takes beside the model, in flash and RAM. TFLite Micro's
# interpreter with the kernels of a classifier and the C library: some 60 to 100 KB.
_MICRO_RESERVED = (128 * 2**10, 32 * 2**10)
_PHONE_RESERVED = (8 * 2**20, 64 * 2**20)


def _parse_size(value: Any) -> int:
    """Bytes of "256 KiB" or of a whole number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = (
        re.fullmatch(r"(\d+) *([A-Za-z]*)", value) if isinstance(value, str) else None
    )
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError("expected a size such as 256 KiB, 1 MiB or bytes")
    return int(found[1]) * _UNITS[found[2].upper()]


_Size = Annotated[int, pydantic.BeforeValidator(_parse_size)]


class _Entry(pydantic.BaseModel):
    """One board as a file tells it; the comment in `boards.yaml` says what is what."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    core: str
    clock_mhz: Annotated[int, pydantic.Field(gt=0)]
    flash: _Size
    ram: _Size
    block: _Size | None = None
    external_ram: _Size = 0
    kernels: Literal["cmsis-nn", "esp-nn", "reference", "litert"]
    source: str
    reserved_flash: _Size | None = None
    reserved_ram: _Size | None = None


@dataclass(frozen=True)
class Board:
    """A board or phone.

    Attributes:
        name: What it is called.
        core: Its processor core, and the chip.
        clock_mhz: The core's clock.
        flash: Bytes of flash.
        ram: Bytes of RAM in the chip; of a phone, all of it.
        block: The most bytes of it that one array can take.
        external_ram: Bytes of RAM beside the chip, slower; 0 if none.
        kernels: "cmsis-nn", "esp-nn", "reference", or of a device with an operating
            system "litert".
        source: The page that says so.
        reserved_flash: Bytes of flash that the application takes beside the model.
        reserved_ram: Bytes of RAM, likewise.
    """

    name: str
    core: str
    clock_mhz: int
    flash: int
    ram: int
    block: int
    external_ram: int
    kernels: str
    source: str
    reserved_flash: int
    reserved_ram: int

    @property
    def micro(self) -> bool:
        """Whether it runs TFLite Micro."""
        return self.kernels != "litert"


def load_boards(path: str | os.PathLike | None = None) -> dict[str, Board]:
    """Reads the boards that are known.

    Args:
        path: A YAML file with more of them, in the form of `kdprune/kit/boards.yaml`;
            of one name, its board counts.

    Returns:
        `{name: board}`, microcontrollers first, those of `path` in front.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not hold boards, naming the entry and what is expected.
    """
    package = importlib.resources.files("kdprune.kit").joinpath("boards.yaml")
    boards = _parse(read_yaml(package.read_text("utf-8"), "boards.yaml"), "boards.yaml")
    if path is None:
        return boards
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file of boards at {file}")
    return {**(own := _parse(read_yaml_file(file), str(file))), **(boards | own)}


def find_boards(names: Iterable[str], boards: dict[str, Board]) -> list[Board]:
    """The boards of these names, whatever their case, blanks and hyphens.

    A part of a name is enough where one board alone has it.

    Raises:
        ValueError: If one is not known, with those that are.
    """
    return [_find(name, boards) for name in names]


def _find(name: str, boards: dict[str, Board]) -> Board:
    plain = {_plain(known): board for known, board in boards.items()}
    if _plain(name) in plain:
        return plain[_plain(name)]
    parts = [board for known, board in plain.items() if name and _plain(name) in known]
    if len(parts) == 1:
        return parts[0]
    listed = ", ".join(board.name for board in parts or boards.values())
    what = "is in several names" if parts else "is not a known board"
    raise ValueError(
        f"--board {name!r} {what}{'' if parts else nearest(name, boards)}; expected "
        f"one of: {listed}; others are given by --boards FILE"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _parse(content: Any, source: str) -> dict[str, Board]:
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{source}: expected boards by name, each with core, clock_mhz, flash, "
            f"ram, kernels and source. Received: {type(content).__name__}"
        )
    return {
        str(name): _board(str(name), found, source) for name, found in content.items()
    }


def _board(name: str, content: Any, source: str) -> Board:
    try:
        entry = _Entry.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{source}: {name}{f'.{key}' if key else ''}: {first['msg']}. Received: "
            f"{str(first['input'])[:60]!r}"
        ) from error
    given = entry.model_dump()
    for key, value in zip(
        ("reserved_flash", "reserved_ram"),
        _PHONE_RESERVED if entry.kernels == "litert" else _MICRO_RESERVED,
        strict=True,
    ):
        given[key] = value if given[key] is None else given[key]
    given["block"] = entry.ram if entry.block is None else entry.block
    return Board(name=name, **given)
