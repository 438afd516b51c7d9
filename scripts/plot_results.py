"""Writes the tables, plots and report page from the measurements alone.

Usage:
    python scripts/plot_results.py configs/cifar10.yaml
"""

from kdprune import cli

if __name__ == "__main__":
    cli.run_stage("report", description=__doc__)
