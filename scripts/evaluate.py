"""Measures accuracy, size and latency from the files that the recipe made.

Usage:
    python scripts/evaluate.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("evaluate", description=__doc__)
