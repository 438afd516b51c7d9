"""The `kdprune` command."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from kdprune.cli.stopping import stop_in_a_line

__all__ = ["main", "run_stage"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    before = stop_in_a_line()
    try:
        # Takes a while, in which it may be stopped already.
        from kdprune.cli import app

        return app.main(arguments)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stage(role: str, description: str | None = None) -> None:
    """The whole of a script in `scripts/`: one role's stages of a recipe."""
    stop_in_a_line()
    from kdprune.cli import app

    app.run_stage(role, description)
