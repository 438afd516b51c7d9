"""Trains the student alone: the baseline that every later stage is held against.

Usage:
    python scripts/train_student.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("train_student", description=__doc__)
