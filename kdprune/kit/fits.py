"""Whether a `.tflite` file fits a board or a phone: flash, RAM and operators."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kdprune._registry import suggesting
from kdprune.kit.boards import Board, load_boards
from kdprune.kit.micro import measure_arena
from kdprune.tflite.format import File, Graph, read_content, read_tflite
from kdprune.tflite.inspection import inspect_tflite

# TFLite Micro's own tables, beyond the activations, by operator and by output channel
# of a quantized layer (a multiplier and a shift): bounds of what `measure_arena` finds
# on networks of 15 to 160 operators.
_TABLE, _CHANNEL = 450, 8
_PLANNED_GAPS = 1.1  # An arena has gaps between tensors; measured ones include them.
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_ALIGN = 64


@dataclass(frozen=True)
class Needs:
    """What a file needs of a device.

    Attributes:
        model: Bytes of the file.
        arena: Bytes of TFLite Micro's tensor arena.
        measured: Whether TFLite Micro has run the file and said so; else planned.
        scratch: Bytes on top that optimized kernels may take, by their name: an upper
            bound, after their sources.
        peak: Peak activation memory in bytes.
        missing: Operators that TFLite Micro has no kernel for, with their type.
        refusal: What TFLite Micro said where it does not run the file, else None.
    """

    model: int
    arena: int
    measured: bool
    scratch: dict[str, int]
    peak: int
    missing: tuple[str, ...]
    refusal: str | None


@dataclass(frozen=True)
class Fit:
    """Whether a file fits one board.

    Attributes:
        board: The board's name.
        fits: Whether it does.
        place: Where the arena goes: "ram", or "external_ram" where only that is large
            enough; None if it goes nowhere.
        flash: Bytes of flash needed, the application's allowance included.
        flash_of: Bytes that the board has.
        ram: Bytes of RAM needed, allowance and scratch included.
        ram_of: Bytes that the board has in its chip.
        measured: Whether the arena in `ram` was measured, else planned.
        reasons: Why it does not fit; or what to mind where it does.
    """

    board: str
    fits: bool
    place: str | None
    flash: int
    flash_of: int
    ram: int
    ram_of: int
    measured: bool
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return {**asdict(self), "reasons": list(self.reasons)}


def find_needs(file: File) -> Needs:
    """Finds out what a file needs: bytes, arena, operators.

    The arena is measured by TFLite Micro where `tflite-micro` is installed, on a
    64-bit machine with its reference kernels; otherwise it is planned, from what must
    be held at once and the interpreter's tables. Optimized kernels copy a patch of the
    image (CMSIS-NN) or all of it (ESP-NN) beside: `scratch`.

    Args:
        file: A `.tflite` file: its path, or its content.

    Returns:
        A `Needs`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a `.tflite` file of one input and one output, or is
            damaged.
    """
    content = read_content(file)
    figures = inspect_tflite(content)
    missing = tuple(
        f"{row['op']} ({row['type']})"
        for row in figures["operators"]
        if not row["micro"]
    )
    graph = read_tflite(content)
    peak = figures["peak_activation_bytes"]
    arena, refusal = None, None
    if not missing:  # What lacks a kernel is refused as well, in fewer words.
        try:
            arena = measure_arena(content)
        except ValueError as error:
            refusal = str(error)
    return Needs(
        model=len(content),
        arena=_plan_arena(graph, peak) if arena is None else arena,
        measured=arena is not None,
        scratch={"cmsis-nn": _cmsis_nn(graph), "esp-nn": _esp_nn(graph)},
        peak=peak,
        missing=missing,
        refusal=refusal,
    )


@suggesting
def check_fit(file: File | Needs, boards: Iterable[Board] | None = None) -> list[Fit]:
    """Compares what a file needs with what boards and phones have.

    Args:
        file: A `.tflite` file (its path, or its content), or what `find_needs` found.
        boards: What to compare with; all that are known if None.

    Returns:
        A `Fit` for each.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file can't be read, see `find_needs`.
    """
    needs = file if isinstance(file, Needs) else find_needs(file)
    known = load_boards().values() if boards is None else boards
    return [_fit(needs, board) for board in known]


def _fit(needs: Needs, board: Board) -> Fit:
    flash = needs.model + board.reserved_flash
    if board.micro:
        arena = needs.arena + needs.scratch.get(board.kernels, 0)
        place, reasons = _place(arena, needs, board)
        if needs.missing:
            listed = ", ".join(needs.missing)
            reasons = [f"TFLite Micro has no kernel for {listed}", *reasons]
        if needs.refusal:
            reasons = [needs.refusal, *reasons]
        runs = not needs.missing and needs.refusal is None
    else:
        # The file is mapped, and XNNPACK packs a copy of its weights.
        arena, runs, reasons = needs.peak + 2 * needs.model, True, []
        place = "ram" if arena + board.reserved_ram <= board.ram else None
        if place is None:
            reasons = [f"{arena + board.reserved_ram:,} bytes of RAM of {board.ram:,}"]
    if flash > board.flash:
        reasons.append(f"{flash:,} bytes of flash of {board.flash:,}")
    return Fit(
        board=board.name,
        fits=runs and place is not None and flash <= board.flash,
        place=place,
        flash=flash,
        flash_of=board.flash,
        ram=arena + board.reserved_ram,
        ram_of=board.ram,
        measured=needs.measured and board.micro,
        reasons=tuple(reasons),
    )


def _place(arena: int, needs: Needs, board: Board) -> tuple[str | None, list[str]]:
    """Where the arena goes, and what is to be said of it."""
    total = arena + board.reserved_ram
    if arena <= board.block and total <= board.ram:
        return "ram", []
    if arena > board.block:
        short = f"an arena of {arena:,} bytes, of {board.block:,} in one piece"
    else:
        short = f"{total:,} bytes of RAM of {board.ram:,}"
    if arena <= board.external_ram:
        return "external_ram", [f"{short}; it fits the RAM beside the chip, slower"]
    return None, [short]


def _plan_arena(graph: Graph, peak: int) -> int:
    channels = sum(
        len(graph.tensors[op.inputs[1]].scale)
        for op in graph.ops
        if op.name in _KERNELS and len(op.inputs) > 1 and op.inputs[1] >= 0
    )
    return int(peak * _PLANNED_GAPS) + _TABLE * len(graph.ops) + _CHANNEL * channels


def _layers(graph: Graph) -> Iterable[tuple[bool, tuple[int, ...], tuple[int, ...]]]:
    """`(depthwise, input shape, kernel shape)` of the int8 convolutions."""
    for op in graph.ops:
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            image, kernel = (graph.tensors[i] for i in op.inputs[:2])
            if image.dtype == "int8" and len(image.shape) == len(kernel.shape) == 4:
                yield op.name == "DEPTHWISE_CONV_2D", image.shape, kernel.shape


def _cmsis_nn(graph: Graph) -> int:
    """The largest buffer of a convolution: two patches of the image, in 16 bits.

    Source: arm_convolve_get_buffer_sizes_s8.c and the depthwise one of
    https://github.com/ARM-software/CMSIS-NN; those for cores with MVE are smaller.
    """
    sizes = [0]
    for depthwise, image, (_, height, width, _) in _layers(graph):
        patch = height * width * image[3]
        if depthwise:
            sizes.append(2 * patch)
        else:
            sizes.append(4 * math.ceil(patch / 4) * 4)
    return max(sizes)


def _esp_nn(graph: Graph) -> int:
    """The largest buffer of a convolution: the padded image and its aligned kernels.

    Source: esp_nn_conv_esp32s3.c and esp_nn_depthwise_conv_s8_esp32s3.c of
    https://github.com/espressif/esp-nn; plain ESP32 kernels take less.
    """
    sizes = [0]
    for depthwise, (_, rows, columns, channels), kernel in _layers(graph):
        count, height, width, _ = kernel
        padded = (rows + height - 1) * (columns + width - 1) * channels
        if depthwise:  # Both widened to 16 bits.
            sizes.append(2 * (padded + math.prod(kernel)) + _ALIGN)
        elif height == width == 1:
            sizes.append(24 * channels + max(16 * 2**10, 8 * count) + _ALIGN)
        else:
            row = math.ceil(width * channels / 16) * 16
            sizes.append(padded + row * height * count + 4 * count + _ALIGN)
    return max(sizes)
