"""Quantizes a student to int8, keeping the zeros that pruning left.

Usage:
    python scripts/quantize_student.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("quantize", description=__doc__)
