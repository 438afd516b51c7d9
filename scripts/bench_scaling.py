"""Measures what a second worker gains, and what its communication costs.

Trains a small network on generated images by `kdprune run`, each process on one core,
three ways, interleaved (A B C A B C), so that a change of the machine's load meets all:

    one     one process, the whole batch
    two     two workers of `--workers` on the loopback address, half the batch each
    beside  two processes that know nothing of each other, half the images and half the
            batch each: what `two` would take if communication cost nothing

What counts is the median of an epoch's seconds, without the first, which traces. Of the
two processes of `beside` the slower one counts, as the workers of `two` wait for each
other. Run it while nothing else runs.

Usage:
    python scripts/bench_scaling.py [--model NAME] [--images N] [--json OUT]
"""

import argparse
import contextlib
import csv
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

import yaml

from kdprune import _io, records

# Before the command, on a core of its own; its children have it, too.
PINNED = "import os, sys; os.sched_setaffinity(0, [int(sys.argv.pop(1))]); "
COMMAND = "from kdprune.cli import main; sys.exit(main())"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet8", help="a factory (resnet8)")
    parser.add_argument("--images", type=int, default=12_800, help="an epoch (12800)")
    parser.add_argument("--batch", type=int, default=128, help="of all workers (128)")
    parser.add_argument("--epochs", type=int, default=4, help="of a round (4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (3)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs expects 2 or more: the first is not counted")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two cores are needed, of which each worker has one")
    print(f"{records.machine()['processor']}, {options.model}", flush=True)
    ways = {"one": one, "two": two, "beside": beside}
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                found = way(options, pathlib.Path(folder), cores)
            seconds[name].append(found)
            print(f"{name}: {found:.2f} s an epoch", flush=True)
    figures = summarize(seconds, options.images / options.batch)
    print(
        f"two workers are {figures['speedup']:.2f} times as fast as one; "
        f"communication takes {figures['communication_ms_per_step']:.1f} ms a step, "
        f"{figures['communication_share']:.0%} of it"
    )
    if options.json:
        content = {"command": records.command(), "seconds": seconds, **figures}
        content |= {"machine": records.machine(), "versions": records.versions()}
        _io.write_json(options.json, content)


def summarize(seconds, steps):
    """What the seconds of an epoch of `steps` steps say, each way in several rounds."""
    one, two, beside = (
        statistics.median(seconds[way]) for way in ("one", "two", "beside")
    )
    return {
        "speedup": one / two,
        "speedup_without_communication": one / beside,
        "communication_ms_per_step": 1000 * (two - beside) / steps,
        "communication_share": (two - beside) / two,
    }


def one(options, folder, cores):
    run = start(folder, "run", cores[0], recipe(options, 1))
    return finish([run], folder, ["run"])


def two(options, folder, cores):
    with contextlib.ExitStack() as held:
        free = [
            held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in cores
        ]
        workers = ",".join(f"127.0.0.1:{s.getsockname()[1]}" for s in free)
    runs = [
        start(
            folder,
            "run",
            core,
            recipe(options, 1),
            *("--workers", workers, "--index", str(index)),
        )
        for index, core in enumerate(cores)
    ]
    return finish(runs, folder, ["run"])


def beside(options, folder, cores):
    names = ["first", "second"]
    runs = [
        start(folder, name, core, recipe(options, 2))
        for name, core in zip(names, cores, strict=True)
    ]
    return finish(runs, folder, names)


def recipe(options, parts):
    """Trains on one of so many parts of the images, by the same number of steps."""
    # A tenth is held out for validation.
    images = round(options.images / 0.9) // parts
    return {
        "name": "scaling",
        "data": {
            "dataset": "shapes",
            "train_images": images,
            "test_images": 10,
            "validation": images - options.images // parts,
        },
        "stages": {
            "student": {
                "kind": "train",
                "model": {"name": options.model},
                "training": {
                    "epochs": options.epochs,
                    "batch_size": options.batch // parts,
                    "precision": "float32",
                    "augment": {"crop": 4},
                },
            }
        },
    }


def start(folder, name, core, content, *arguments):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    command = ["run", str(path), "--output", str(folder / name), *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", PINNED + COMMAND, str(core), *command],
        stdout=subprocess.DEVNULL,
    )


def finish(runs, folder, names):
    """Median seconds of an epoch, the first left out, of the slowest run."""
    try:
        statuses = [run.wait() for run in runs]
    finally:
        for run in runs:
            run.kill()
    if any(statuses):
        raise SystemExit(f"kdprune run ended with {statuses}")
    return max(
        epoch_seconds(folder / name / "student" / "history.csv") for name in names
    )


def epoch_seconds(path):
    with open(path, newline="") as file:
        return statistics.median(
            float(row["seconds"]) for row in list(csv.DictReader(file))[1:]
        )


if __name__ == "__main__":
    main()
