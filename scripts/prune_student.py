"""Prunes a trained student, and recovers it with the teacher's help.

Usage:
    python scripts/prune_student.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("prune", description=__doc__)
