"""The ship kit: what an app or a microcontroller needs of a model, self-tested."""

from kdprune.kit.build import write_kit

__all__ = ["write_kit"]
