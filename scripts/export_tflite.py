"""Exports the trained models as `.tflite` files.

Usage:
    python scripts/export_tflite.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("export", description=__doc__)
