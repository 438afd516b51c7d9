"""Measures what stages side by side gain over one after the other.

Trains the same small student with several seeds, by `kdprune run` on generated images:
with one job, each on all cores, and with as many jobs as cores, each on one. All of a
run counts, from starting the processes to the last record.

Usage:
    python scripts/bench_jobs.py [--model NAME] [--images N] [--epochs N] [--json OUT]
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import yaml

from kdprune import _io, records


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--model", default="resnet8", help="a factory (resnet8)")
    parser.add_argument("--images", type=int, default=10_000, help="an epoch (10000)")
    parser.add_argument("--epochs", type=int, default=3, help="of each seed (3)")
    parser.add_argument("--jobs", type=int, default=cores, help=f"at once ({cores})")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each (2)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    print(f"{records.machine()['processor']}, {cores} cores", flush=True)
    seconds = {1: [], options.jobs: []}
    for _ in range(options.rounds):
        for jobs, found in seconds.items():
            found.append(run(options, jobs))
            print(f"{jobs} at once: {found[-1]:.1f} s", flush=True)
    medians = {jobs: statistics.median(found) for jobs, found in seconds.items()}
    ratio = medians[1] / medians[options.jobs]
    print(f"{options.jobs} jobs take {ratio:.2f} times less time than one")
    if options.json:
        content = {"command": records.command(), "seconds": seconds, "ratio": ratio}
        content |= {"machine": records.machine(), "versions": records.versions()}
        _io.write_json(options.json, content)


def run(options, jobs):
    """Runs as many seeds as there are jobs in a folder of its own; returns seconds."""
    training = {"epochs": options.epochs, "augment": {"crop": 4}}
    recipe = {
        "name": "jobs",
        "data": {"dataset": "shapes", "train_images": options.images},
        "matrix": {"seed": list(range(options.jobs))},
        "stages": {
            "student": {
                "kind": "train",
                "model": {"name": options.model},
                "training": training,
            }
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "jobs.yaml"
        path.write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "kdprune.cli", "run", str(path)]
        command += ["--output", folder + "/run", "--jobs", str(jobs)]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
