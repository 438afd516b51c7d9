"""The ship kit: what an app or a microcontroller needs of a model, self-tested."""

from kdprune.kit.build import label_file, write_kit

__all__ = ["label_file", "write_kit"]
