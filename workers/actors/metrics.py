"""The metrics of this process, through Ray's exporter, which adds `ray_`, node and worker.

A metric that exists before Ray is started would never be exported, so each is made when it is first
recorded. Ray forgets a gauge that is not set again within two of its reports (20 seconds), so a
process sets its gauges every REFRESH_S for as long as they hold.
"""

import threading
from collections.abc import Callable
from functools import cache

import ray
import torch
from ray.util import metrics

from schemas.metrics import Metric
from workers.storage.traffic import Direction, listen

REFRESH_S = 5.0


def count(metric: Metric, amount: float = 1, **labels: str) -> None:
    """Add to a counter; does nothing if no Ray runs."""
    if amount and ray.is_initialized():
        _counter(metric).inc(amount, _checked(metric, labels))


def show(metric: Metric, value: float, **labels: str) -> None:
    """Set a gauge, for some seconds; does nothing if no Ray runs."""
    if ray.is_initialized():
        _gauge(metric).set(value, _checked(metric, labels))


def keep(record: Callable[[], None]) -> Callable[[], None]:
    """Call `record` now and every REFRESH_S; calling the returned function ends that."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(REFRESH_S):
            record()

    def end() -> None:
        ended.set()
        thread.join()

    record()
    thread = threading.Thread(target=repeat, name="metrics", daemon=True)
    thread.start()
    return end


def count_traffic() -> None:
    """Count what this process reads and writes from now on."""
    listen(_traffic)


@cache  # once, for a second thread would reset the peak that the first is to show
def show_memory(device: torch.device) -> None:
    """Show the GPU memory that tensors take from now on, until this process ends."""
    if device.type == "cuda":
        keep(lambda: _memory(device))


def _memory(device: torch.device) -> None:
    show(Metric.GPU_ALLOCATED, torch.cuda.max_memory_allocated(device))
    show(Metric.GPU_MEMORY, torch.cuda.get_device_properties(device).total_memory)
    torch.cuda.reset_peak_memory_stats(device)


def _traffic(direction: Direction, kind: str, size: int) -> None:
    count(Metric.READ if direction == "read" else Metric.WRITTEN, size, kind=kind)


@cache
def _counter(metric: Metric) -> metrics.Counter:
    return metrics.Counter(metric.metric, metric.description, metric.labels)


@cache
def _gauge(metric: Metric) -> metrics.Gauge:
    return metrics.Gauge(metric.metric, metric.description, metric.labels)


def _checked(metric: Metric, labels: dict[str, str]) -> dict[str, str]:
    if labels.keys() != set(metric.labels):
        raise ValueError(f"{metric.metric} has the labels {metric.labels}, not {(*labels,)}")
    return labels
