"""Trains the recipe's teacher.

Usage:
    python scripts/train_teacher.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("train_teacher", description=__doc__)
