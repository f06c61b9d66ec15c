"""What Prometheus is given of a run: every metric of the table, with true values."""

import contextlib
import re
import signal
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from schemas.metrics import Metric
from schemas.request.config import RunConfig
from schemas.result.manifest import Compression
from tests.integration.processes import Start
from tests.integration.support import CALIBRATION, KINDS, ask, until
from tests.items import local
from tests.models import tiny_model
from workers.model.inspection import inspect
from workers.storage.store import Store


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
    spec = inspect(Path(config.model))
    windows, tokens = CALIBRATION["samples"], CALIBRATION["samples"] * 64
    cut = [row.name for row in rows if row.encoding != "dense"]
    found: dict[Series, float] = {
        series(Metric.STAGE_ITEMS, "calibrate forward"): windows,
        series(Metric.TOKENS, "calibrate forward"): tokens,
        series(Metric.TOKENS, "calibrate backward"): tokens,
        series(Metric.MATRICES, "factorise"): len(spec.matrices) + len(spec.neurons),
        series(Metric.LAYERS, "factorise"): 2,
        series(Metric.MATRICES, "truncate"): len(cut),
        series(Metric.LAYERS, "truncate"): len({name.split(".")[1] for name in cut}),
    }
    for kind in KINDS:
        written = sum(record.bytes for record in Store(root).records(kind))
        found[series(Metric.WRITTEN, kind)] = written
    return found


def test_a_run_is_seen_by_prometheus(text: Path, tmp_path: Path, start: Start) -> None:
    config = ask(tiny_model(tmp_path / "model"), text, tmp_path / "out")
    environment = {"RAY_metrics_report_interval_ms": "1000"}
    program = ("-m", "tests.integration.measured")
    command = start([config.model_dump_json()], environment=environment, program=program)
    seen: dict[Series, float] = {}
    last: defaultdict[Series, float] = defaultdict(float)

    def all_there() -> bool:
        nonlocal last
        try:
            last = scrape(port)
        except OSError:  # nobody listens yet
            return False
        seen.update(last)
        return {one.name for one in seen} == names and wanted.items() <= last.items()

    names = {metric.metric for metric in Metric}
    until(lambda: command.going and "\n" in command.printed, "all is recorded")
    port, wanted = int(command.printed), expected(config)
    with contextlib.suppress(AssertionError):  # what is missing is said below
        until(all_there, "every metric has its value")
    command.send(signal.SIGUSR1)
    assert command.wait() == 0, command.log
    assert {one.name for one in seen} == names
    assert {one: last[one] for one in wanted} == wanted
    size = (Path(config.model) / "model.safetensors").stat().st_size
    assert last[series(Metric.READ, "weights")] > size / 2
    assert last[series(Metric.NIGHTLY_CHECKPOINTS, "rejected")] == 1
    assert seen[series(Metric.PERPLEXITY, "base", "0.3")] == 20.5
    assert seen[series(Metric.PERPLEXITY, "compressed", "0.3")] == 25.5
    assert series(Metric.STAGE_PROGRESS, "under way") in seen
    assert len(seen) < 100  # however many layers the model has
