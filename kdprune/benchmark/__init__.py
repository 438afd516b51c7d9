"""How long a file takes: here, operator by operator, or on a phone."""

from kdprune.benchmark.latency import measure_latencies, measure_latency

__all__ = ["measure_latencies", "measure_latency"]
