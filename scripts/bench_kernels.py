"""Measures a training step with TensorFlow's oneDNN kernels and without.

TensorFlow uses them where a processor has instructions for neural networks
(AVX512-VNNI, AVX-VNNI and later) and leaves them alone elsewhere; kdprune turns them
on for all of x86-64. Each step runs in a process of its own, interleaved (A B A B), so
that a change of the machine's load meets both. Run it while nothing else runs.

Usage:
    python scripts/bench_kernels.py [--models resnet8 article_student] [--json OUT]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import tensorflow as tf
from bench_training import SETTINGS, bare_step

import kdprune
from kdprune import records

SECONDS = 6  # Of steps, in each process.


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (5)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(_images_per_second(options.measure))
        return
    print(records.machine()["processor"])
    print("images per second of a float32 step: oneDNN, without")
    results = {}
    for name in options.models:
        rounds = [[_measured(name, on) for on in "10"] for _ in range(options.rounds)]
        on, off = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(one / other for one, other in rounds)
        results[name] = {"onednn": on, "without": off, "ratio": ratio, "rounds": rounds}
        print(f"{name:18} {on:7.0f} {off:7.0f}   {ratio:.2f} times as fast", flush=True)
    if options.json:
        content = {"command": records.command(), "images_per_second": results}
        content |= {"machine": records.machine(), "versions": records.versions()}
        records.write_json(options.json, content)


def _measured(name, on):
    run = subprocess.run(
        [sys.executable, __file__, "--measure", name],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": on},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(run.stdout.split()[-1])


def _images_per_second(name):
    setting = SETTINGS[name]
    batch = setting["batch"]
    step = bare_step(kdprune.build_model(name, **setting["arguments"]))
    images = tf.random.uniform((batch, 32, 32, 3), seed=0)
    labels = tf.random.uniform((batch,), 0, 10, tf.int64, seed=0)
    for _ in range(3):  # The first one traces.
        step(images, labels).numpy()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        step(images, labels).numpy()
        count += 1
    return count * batch / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
