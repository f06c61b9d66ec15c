"""What Prometheus is given of a run: every metric of the table, with true values."""

import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from schemas.metrics import Metric
from schemas.request.config import RunConfig
from schemas.result.manifest import Compression
from tests.integration.support import CALIBRATION, KINDS, ROOT, ask, until
from tests.items import local
from tests.models import tiny_model
from workers.model.inspection import inspect
from workers.storage.store import Store

# In a process of its own, on a Ray of its own, whose counters begin at zero. What an undisturbed
# run on a CPU does not record is recorded by itself.
SCRIPT = """
import sys
import ray
from pipeline.cluster.session import ray_session
from pipeline.compress import compress
from pipeline.metrics import count_nightly, measured, show_perplexity
from pipeline.progress import Progress
from schemas.request.config import RunConfig
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from schemas.metrics import Metric
from workers.actors.metrics import count, show

def scored(name, perplexity):
    return ModelEvaluation(name=name, perplexity=perplexity, mean_nll=1, windows=1, parameters=1,
        predicted_tokens=1, bytes_on_disk=1, stored_dtype="F32", sample=None,
        tokens_per_second=1, seconds=1)

config = RunConfig.model_validate_json(sys.argv[1])
models = (scored("a", 20.5), scored("b", 25.5))
report = EvaluationReport(text="t", sequence_length=2, dtype="float32", models=models)
with ray_session(config.cluster, 1):
    compress(config)
    show_perplexity(report, 0.30)
    count_nightly("succeeded")
    count_nightly("rejected")
    count(Metric.RETRIES, kind="item")
    count(Metric.LOST_WORKERS, 2)
    count(Metric.QUARANTINED, 3)
    count(Metric.FALLBACKS, 4, kind="run")
    show(Metric.GPU_ALLOCATED, 5)
    show(Metric.GPU_MEMORY, 6)
    progress = Progress()
    with measured(progress), progress.stage("under way", 2, "items") as stage:
        stage.advance()
        print(ray.nodes()[0]["MetricsExportPort"], flush=True)
        sys.stdin.read()
"""


class Series(NamedTuple):
    """A metric with its own labels, without those that Ray adds."""

    name: str
    labels: tuple[str, ...]


def scrape(port: int) -> defaultdict[Series, float]:
    """The metrics of the program, each summed over processes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    labels = {metric.metric: metric.labels for metric in Metric}
    found: defaultdict[Series, float] = defaultdict(float)
    for name, given, value in re.findall(r"^ray_(svdllm_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        values = dict(re.findall(r'(\w+)="([^"]*)"', given))
        found[Series(name, tuple(values[label] for label in labels[name]))] += float(value)
    return found


def series(metric: Metric, *labels: str) -> Series:
    return Series(metric.metric, labels)


def expected(config: RunConfig) -> dict[Series, float]:
    """The counters of an undisturbed run, from what it left on disk."""
    root = local(config.run_folder)
    text = (local(config.output_folder(0.3)) / "compression.json").read_bytes()
    rows = Compression.model_validate_json(text).matrices
    matrices = len(inspect(Path(config.model)).matrices)
    windows, tokens = CALIBRATION["samples"], CALIBRATION["samples"] * 64
    cut = [row.name for row in rows if row.encoding != "dense"]
    found: dict[Series, float] = {
        series(Metric.STAGE_ITEMS, "calibrate forward"): windows,
        series(Metric.TOKENS, "calibrate forward"): tokens,
        series(Metric.TOKENS, "calibrate backward"): tokens,
        series(Metric.MATRICES, "factorise"): matrices,
        series(Metric.LAYERS, "factorise"): 2,
        series(Metric.MATRICES, "truncate"): len(cut),
        series(Metric.LAYERS, "truncate"): len({name.split(".")[1] for name in cut}),
    }
    for kind in KINDS:
        written = sum(record.bytes for record in Store(root).records(kind))
        found[series(Metric.WRITTEN, kind)] = written
    return found


def test_a_run_is_seen_by_prometheus(text: Path, tmp_path: Path) -> None:
    config = ask(tiny_model(tmp_path / "model"), text, tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, config.model_dump_json()],
        cwd=ROOT,
        env=os.environ | {"RAY_metrics_report_interval_ms": "1000"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen: dict[Series, float] = {}
    last: defaultdict[Series, float] = defaultdict(float)

    def all_there() -> bool:
        nonlocal last
        last = scrape(port)
        seen.update(last)
        return {one.name for one in seen} == names and wanted.items() <= last.items()

    names = {metric.metric for metric in Metric}
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        wanted = expected(config)
        with contextlib.suppress(AssertionError):  # what is missing is said below
            until(all_there, "every metric has its value")
        process.stdin.close()
    assert process.returncode == 0
    assert {one.name for one in seen} == names
    assert {one: last[one] for one in wanted} == wanted
    size = (Path(config.model) / "model.safetensors").stat().st_size
    assert last[series(Metric.READ, "weights")] > size / 2
    assert last[series(Metric.NIGHTLY_CHECKPOINTS, "rejected")] == 1
    assert seen[series(Metric.PERPLEXITY, "base", "0.3")] == 20.5
    assert seen[series(Metric.PERPLEXITY, "compressed", "0.3")] == 25.5
    assert series(Metric.STAGE_PROGRESS, "under way") in seen
    assert len(seen) < 100  # however many layers the model has
