"""Measures what channel pruning is worth in milliseconds, float and int8.

Nets of MLPerf Tiny's and ResNet-20's shape are cut to a share of their MACs, and each
is timed interleaved with the whole one on the phones' kernels (XNNPACK) and on the
runtime's own. Latency does not depend on what the weights are, so the nets are not
trained. With --profile the time of each kind of operator shows where the rest went.

Usage:
    python scripts/bench_pruning.py [--share 0.5] [--profile] [--json OUT]
"""

import argparse
import pathlib
import tempfile

import kdprune
from kdprune import prune, records
from kdprune.benchmark import latency, profile

NETS = {
    "resnet8": {"name": "resnet8"},
    "resnet20": {"name": "resnet", "depth": 20},
    "resnet20_double": {"name": "resnet", "depth": 20, "filters": (32, 64, 128)},
}
RESOLVERS = ("xnnpack", "builtin")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs (0.5)")
    parser.add_argument("--profile", action="store_true", help="time each operator")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    print(f"{records.machine()['processor']}, one thread, batch 1", flush=True)
    images = kdprune.load_dataset("shapes", train_images=300).train.images[:100]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            net: measure(net, options, images, pathlib.Path(folder))
            for net in options.nets
        }
    if options.json:
        content = {"command": records.command(), "share": options.share, "nets": found}
        content |= {"machine": records.machine(), "versions": records.versions()}
        records.write_json(options.json, content)


def measure(net, options, images, folder):
    """Measures one net, whole and cut, of both types on both kernels."""
    whole = kdprune.build_model(**NETS[net])
    macs = kdprune.count_macs(whole)
    cut = prune.prune_channels(
        whole, target_macs=int(options.share * macs), importance="l1"
    )
    result = {"macs": macs, "macs_cut": kdprune.count_macs(cut)}
    for dtype in ("float32", "int8"):
        calibration = images if dtype == "int8" else None
        paths = []
        for name, model in (("whole", whole), ("cut", cut)):
            paths.append(folder / f"{net}-{name}.{dtype}.tflite")
            paths[-1].write_bytes(kdprune.convert_tflite(model, dtype, calibration))
        result[dtype] = latency.measure_latencies(paths, RESOLVERS)
        for entry in result[dtype]:
            entry["file"] = pathlib.Path(entry["file"]).name
            if entry["ratio_interval"] == [1, 1]:
                continue
            low, high = entry["ratio_interval"]
            print(
                f"{net:16} {dtype:8} {entry['resolver']:8} "
                f"{entry['latency_ms_p50']:7.3f} ms, {entry['ratio']:.2f} "
                f"({low:.2f} to {high:.2f}) of the whole's, at "
                f"{result['macs_cut'] / macs:.2f} of its MACs",
                flush=True,
            )
        if options.profile:
            result[f"{dtype}_operators"] = [
                {**profile.profile_file(path, resolver=resolver), "file": path.name}
                for path in paths
                for resolver in RESOLVERS
            ]
            show_operators(result[f"{dtype}_operators"])
    return result


def show_operators(profiles):
    """Prints what the kinds of operators take, and what is left between them."""
    for entry in profiles:
        kinds = {}
        for op in entry["ops"]:
            kinds[op["op"]] = kinds.get(op["op"], 0.0) + op["us"]
        parts = [f"{kind} {us:.0f}" for kind, us in kinds.items()]
        print(
            f"    {entry['file']}, {entry['resolver']}: {entry['whole_us']:.0f} us = "
            f"{' + '.join(parts)} + {entry['rest_us']:.0f} of hand-over",
            flush=True,
        )


if __name__ == "__main__":
    main()
