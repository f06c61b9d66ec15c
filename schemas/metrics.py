"""Every metric of the program, in one table: docs, dashboard and alerts are checked against it.

Names follow Prometheus: base units, `_total` for counters. Ray adds the prefix `ray_`.
"""

from enum import Enum
from typing import Literal

MetricKind = Literal["counter", "gauge"]
Outcome = Literal["succeeded", "rejected", "failed"]
"""The outcome of a nightly checkpoint: published, rejected by its gate, or not finished."""

LABELS = {
    "stage": "a stage of a run, as the log names it: `calibrate forward`, `factorise`, ...",
    "kind": "of bytes: `weights` (of a checkpoint), or the kind of an item (`moments`, `bases`, "
    "...); of retries: `item`, or `run` from what is committed; of fallbacks: `matrix`, or `run`",
    "model": "`base` or `compressed`",
    "ratio": "the ratio of an output, as it was asked for",
    "outcome": "`succeeded`, `rejected` or `failed`",
}
"""Every label with its values: few, and none of them a matrix, a path or a message."""


class Metric(Enum):
    """Name, kind, description and labels of each metric."""

    STAGE_PROGRESS = (
        "svdllm_stage_progress_ratio",
        "gauge",
        "Share of the stage under way that is done; there for as long as a driver works",
        "stage",
    )
    STAGE_ITEMS = (
        "svdllm_stage_items_total",
        "counter",
        "Items of stages that are done: windows, moments, matrices, files",
        "stage",
    )
    TOKENS = (
        "svdllm_tokens_total",
        "counter",
        "Tokens that are through the layers of a wave",
        "stage",
    )
    MATRICES = (
        "svdllm_matrices_total",
        "counter",
        "Matrices that are done in a stage, or orders of neurons",
        "stage",
    )
    LAYERS = (
        "svdllm_layers_total",
        "counter",
        "Decoder layers of which the last matrix is done in a stage",
        "stage",
    )
    READ = (
        "svdllm_read_bytes_total",
        "counter",
        "Bytes read of checkpoints and of committed items",
        "kind",
    )
    WRITTEN = (
        "svdllm_written_bytes_total",
        "counter",
        "Bytes of committed items",
        "kind",
    )
    GPU_ALLOCATED = (
        "svdllm_gpu_memory_allocated_bytes",
        "gauge",
        "Most that tensors took of a worker's GPU in the last seconds",
    )
    GPU_MEMORY = (
        "svdllm_gpu_memory_size_bytes",
        "gauge",
        "Memory of a worker's GPU",
    )
    RETRIES = (
        "svdllm_retries_total",
        "counter",
        "Items, or whole runs, that are tried again after an error or a loss",
        "kind",
    )
    LOST_WORKERS = (
        "svdllm_lost_workers_total",
        "counter",
        "Workers that died, or were killed because they hung",
    )
    QUARANTINED = (
        "svdllm_quarantined_items_total",
        "counter",
        "Items that were given up",
    )
    FALLBACKS = (
        "svdllm_fallbacks_total",
        "counter",
        "Numerical fallbacks that an output records",
        "kind",
    )
    PERPLEXITY = (
        "svdllm_perplexity",
        "gauge",
        "Perplexity on the text of a run's evaluation",
        "model",
        "ratio",
    )
    NIGHTLY_CHECKPOINTS = (
        "svdllm_nightly_checkpoints_total",
        "counter",
        "Checkpoints that a nightly job has dealt with",
        "outcome",
    )
    NIGHTLY_SUCCESS = (
        "svdllm_nightly_last_success_timestamp_seconds",
        "gauge",
        "When a nightly job last published a checkpoint, in Unix time",
    )

    def __init__(self, metric: str, kind: MetricKind, description: str, *labels: str) -> None:
        self.metric = metric
        self.kind = kind
        self.description = description
        self.labels = labels
