"""Gathers what is worth keeping of a run, and draws its report from that.

Writes metrics.json, records.json (the records of all stages, and the SHA-256 of each
file kept), the files and the report with its plots. Which files are kept can be said;
the default is those at the top of the run and in its kit.

Usage:
    python scripts/gather_results.py runs/cifar10 results/cifar10
    python scripts/gather_results.py runs/cifar10 results/cifar10 \\
        --files student.keras model_int8.tflite
"""

import argparse

from kdprune import report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run's folder, or one that was gathered before")
    parser.add_argument("target", help="where to write; may be the same folder")
    parser.add_argument(
        "--files", nargs="*", metavar="PATH", help="files of the run to keep"
    )
    options = parser.parse_args()
    try:
        report.gather_results(options.run, options.target, files=options.files)
        print(report.write_report(options.target))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
