"""The `kdprune` command."""

from kdprune.cli.app import main, run_stage

__all__ = ["main", "run_stage"]
