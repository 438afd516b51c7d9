"""Distills a trained teacher into a student.

Usage:
    python scripts/distill_student.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("distill", description=__doc__)
