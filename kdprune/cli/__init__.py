"""The `kdprune` command."""

from kdprune.cli.app import explain, main, run_stage

__all__ = ["explain", "main", "run_stage"]
