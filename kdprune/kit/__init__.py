"""The ship kit: what an app or a microcontroller needs of a model, self-tested."""

from kdprune.kit.boards import Board, find_boards, load_boards
from kdprune.kit.build import label_file, write_kit
from kdprune.kit.fits import Fit, Needs, check_fit, find_needs

__all__ = [
    "Board",
    "Fit",
    "Needs",
    "check_fit",
    "find_boards",
    "find_needs",
    "label_file",
    "load_boards",
    "write_kit",
]
