"""Reckons how training scales over hosts, on paper: the table of docs/scale.md.

    python docs/tools/scaling.py

A step of n hosts computes its share of the batch, then sums the gradients by a ring:

    compute  = fixed + (step - fixed) * share     share = 1/n, or 1 if the batch grows
    sum      = 2 (n - 1)/n * bytes / bandwidth + 2 (n - 1) * latency

The two do not overlap, and all hosts are alike. Ring: Patarasuk and Yuan, 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3.
"""

import dataclasses

HOSTS = (2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Network:
    """A link of each host: usable bytes a second, and seconds of a message."""

    name: str
    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Training:
    """A model's gradients in bytes, and the seconds of a step on one host."""

    name: str
    gradient_bytes: float
    step: float


# Four fifths of a link's rate are taken to be usable.
ETHERNET_1 = Network("1 Gb/s", 0.8 * 1e9 / 8, 100e-6)
ETHERNET_10 = Network("10 Gb/s", 0.8 * 10e9 / 8, 50e-6)
ETHERNET_100 = Network("100 Gb/s", 0.8 * 100e9 / 8, 20e-6)
# Gradients are float32, one of each parameter.
SMALL = Training("0.3 MB, 50 ms", 4 * 78_000, 0.050)
LARGE = Training("102 MB, 400 ms", 4 * 25_600_000, 0.400)
# Seconds of a step that do not shrink with its part of the batch.
FIXED = 0.003

COLUMNS = [
    (SMALL, ETHERNET_1),
    (SMALL, ETHERNET_10),
    (LARGE, ETHERNET_1),
    (LARGE, ETHERNET_10),
    (LARGE, ETHERNET_100),
]


def reduce_seconds(hosts, gradient_bytes, network):
    """Seconds in which a ring sums the gradients of all hosts; 0 of one host."""
    moved = 2 * (hosts - 1) / hosts * gradient_bytes
    return moved / network.bandwidth + 2 * (hosts - 1) * network.latency


def speedup(hosts, training, network, grows=False, fixed=FIXED):
    """How many times as many images a second as one host.

    Args:
        hosts: How many, at least 1.
        training: The model's gradients and step.
        network: Between the hosts.
        grows: Whether the batch is `hosts` times as large, instead of the same.
        fixed: Seconds of a step that do not shrink with its part of the batch.
    """
    share = 1 if grows else 1 / hosts
    step = fixed + (training.step - fixed) * share
    step += reduce_seconds(hosts, training.gradient_bytes, network)
    return (hosts if grows else 1) * training.step / step


def table(grows):
    """The speed-ups as Markdown: a row for each number of hosts."""
    names = [f"{training.name}, {network.name}" for training, network in COLUMNS]
    lines = [f"| hosts | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for hosts in HOSTS:
        cells = [f"{speedup(hosts, *column, grows):.1f}" for column in COLUMNS]
        lines.append(f"| {hosts} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for grows in (False, True):
        print(table(grows), end="\n\n")
