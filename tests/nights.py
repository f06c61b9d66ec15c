"""A training run that leaves checkpoints, and a compression that takes no time."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from pipeline.nightly import catalog
from schemas.location import Location
from schemas.request.config import RunConfig
from schemas.request.nightly import CatalogRow
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Compression, Manifest, OutputResult, RunResult
from schemas.run.identity import Identities, fingerprint
from tests.reports import compression, evaluation
from workers.checkpoint.names import EVALUATION, SUCCESS, WEIGHTS
from workers.storage.keys import RUN_RECORD
from workers.storage.places import create, exists, read_bytes, write

BASE_PERPLEXITY = 20.0


def write_checkpoint(template: Path, folder: Path, version: int) -> Path:
    """A checkpoint like `template` whose last weights are `version`."""
    shutil.copytree(template, folder)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-8, 2)
        file.write(version.to_bytes(8, "little"))
    return folder


def cut_short(folder: Path) -> None:
    """Let the weights of a checkpoint end too early, as if it were half written."""
    path = folder / WEIGHTS
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)


class FakeCompress:
    """Stands for `compress`: writes what it would publish, and reports what it is told to.

    `increases` are relative increases of perplexity, `failures` errors, both by the checkpoint's
    name; `during` is called in the middle of each.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[float, ...]]] = []
        self.made: list[str] = []
        self.increases: dict[str, float] = {}
        self.failures: dict[str, Exception] = {}
        self.samples: dict[str, str] = {}
        self.during: Callable[[str], None] = lambda _: None

    def __call__(self, config: RunConfig) -> RunResult:
        name = config.model.rpartition("/")[2]
        self.asked.append((name, config.ratio))
        outputs = {str(config.output_folder(ratio)): "" for ratio in config.ratio}
        write(config.run_folder / RUN_RECORD, json.dumps({"outputs": outputs}).encode())
        self.during(name)
        if name in self.failures:
            raise self.failures[name]
        return RunResult(
            outputs=tuple(self._output(config, name, ratio) for ratio in config.ratio),
            seconds={},
            busy={},
            driver_peak_bytes=0,
            worker_peak_bytes=(),
        )

    def _output(self, config: RunConfig, name: str, ratio: float) -> OutputResult:
        place = config.output_folder(ratio)
        given = {"model": config.model, "ratio": ratio, "keep": 1 - ratio, "removed": ratio}
        found = compression((), **given)
        evaluated = report(self.increases.get(name, 0.01), self.samples.get(name))
        if not exists(place / SUCCESS):
            self.made.append(str(place))
            publish(place, found)
            write(place / EVALUATION, evaluated.model_dump_json().encode())
        return OutputResult(
            ratio=ratio,
            path=place,
            compression=found,
            checks=(),
            evaluation=evaluated,
        )


class Killed(BaseException):
    """The process is gone: nothing after it is run."""


def kill(compress: FakeCompress, night: Callable[[], object]) -> None:
    """A night that is killed in the middle of its first compression."""
    append = catalog.append

    def gone(prefix: Location, rows: list[CatalogRow]) -> list[CatalogRow]:
        if rows[0].event == "stopped":
            raise Killed
        return append(prefix, rows)

    def die(_: str) -> None:
        raise Killed

    compress.during = die
    with mock.patch.object(catalog, "append", gone), contextlib.suppress(Killed):
        night()
    compress.during = lambda _: None


def publish(place: Location, found: Compression) -> None:
    """A finished output with no weights worth the name."""
    manifest = Manifest(
        output=fingerprint([str(place)]),
        identities=Identities(forward="f", backward=None, bases="b", factors="a"),
        base_files={},
        versions={},
        files={},
    )
    write(place / WEIGHTS, b"weights")
    write(place / "compression.json", found.model_dump_json().encode())
    write(place / "manifest.json", manifest.model_dump_json().encode())
    create(place / SUCCESS, b"")


def report(
    increase: float, sample: str | None = None, kl: float | None = None, base: str | None = None
) -> EvaluationReport:
    """A base of perplexity 20, and a compressed model that is worse by `increase`."""
    worse = BASE_PERPLEXITY * (1 + increase)
    found = evaluation(BASE_PERPLEXITY, worse, sample=sample, kl=kl)
    before, after = found.models
    models = before.model_copy(update={"sample": base}), after
    return found.model_copy(update={"models": models})


def pointed(prefix: Location) -> dict[str, str]:
    """The name that `latest` has at each ratio; none if it is not there."""
    if not exists(prefix / "latest.json"):
        return {}
    found = json.loads(read_bytes(prefix / "latest.json"))
    return {ratio: at["name"] for ratio, at in found["ratios"].items()}
