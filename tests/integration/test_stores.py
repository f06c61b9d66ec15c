"""From an object store into an object store, through a real S3 server on loopback."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.compress import compress
from pipeline.progress import Progress, Stage
from schemas.errors import CheckpointError, ConfigError
from schemas.location import Url
from schemas.request.config import RunConfig
from schemas.request.groups import EvaluationTextConfig, TargetsConfig
from schemas.request.recovery import RecoveryConfig
from schemas.result.manifest import Manifest, OutputResult
from tests.documents import ROOT
from tests.integration.conftest import Endpoint, Reference
from tests.integration.processes import Process, kill_training_workers
from tests.integration.support import KINDS, ask, item_attempts, item_sums, weight_sums
from tests.items import local
from tests.models import tiny_model
from workers.checkpoint.published import is_published
from workers.checkpoint.verify import require, verify_checkpoint
from workers.model.inspection import inspect
from workers.storage.places import (
    create,
    download,
    exists,
    files_below,
    names_in,
    read_bytes,
    upload,
)
from workers.storage.store import Store

BUCKET = Url("s3://bucket")
BASE = BUCKET / "base"
WEIGHTS = "/bucket/base/model.safetensors"


class Server(NamedTuple):
    """A running S3 server and its log."""

    log: Path

    def reads(self, path: str) -> list[tuple[int, int]]:
        """The byte ranges that were asked of an object, the end included."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        found = [span for method, asked, span in rows if method == "GET" and asked == path]
        assert all(found), f"{path} was read whole"
        ends = [span.removeprefix("bytes=").split("-") for span in found]
        return [(int(first), int(last)) for first, last in ends]


@pytest.fixture(scope="module")
def server(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It takes over the session's socket, on which connections wait until it is ready."""
    log = tmp_path_factory.mktemp("server") / "requests"
    log.touch()
    command = [sys.executable, "-m", "tests.integration.s3_server"]
    process = subprocess.Popen(
        [*command, str(endpoint.socket.fileno()), str(log)],
        cwd=ROOT,
        pass_fds=[endpoint.socket.fileno()],
    )
    yield Server(log)
    process.terminate()
    process.wait()


class Stored(NamedTuple):
    """The reference run's base in the store, to be compressed into the store."""

    folder: Path
    config: RunConfig
    expected: Path


@pytest.fixture(scope="module")
def stored(
    server: Server, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Stored:
    import s3fs  # type: ignore[import-untyped]

    s3fs.S3FileSystem().mkdir("bucket")
    folder = Path(reference.config.model)
    for path in folder.iterdir():
        upload(path, BASE / path.name)
    run_dir = tmp_path_factory.mktemp("stores") / "run"
    where = {"model": BASE, "output": BUCKET / "output", "run_dir": run_dir}
    config = RunConfig.model_validate(reference.config.model_dump() | where)
    return Stored(folder, config, local(reference.output.path))


class Made(NamedTuple):
    """What a run made of it, and what the run read of its weights."""

    output: OutputResult
    reads: list[tuple[int, int]]


@pytest.fixture(scope="module")
def made(stored: Stored, server: Server) -> Made:
    before = len(server.reads(WEIGHTS))
    (output,) = compress(stored.config).outputs
    return Made(output, server.reads(WEIGHTS)[before:])


class Notes(Progress):
    """What a run said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_from_store_to_store(stored: Stored, made: Made, server: Server, tmp_path: Path) -> None:
    output = made.output
    assert output.path == BUCKET / "output"
    assert all(check.passed for check in output.checks)

    names = names_in(BUCKET / "output")
    there = {path.name for path in stored.expected.iterdir()}
    assert set(names) == there
    download({name: BUCKET / "output" / name for name in names}, tmp_path)
    assert weight_sums(tmp_path) == weight_sums(stored.expected)

    manifest = Manifest.model_validate_json(read_bytes(BUCKET / "output" / "manifest.json"))
    assert manifest.base_files["model.safetensors"].startswith("etag:")
    assert len(manifest.base_files["config.json"]) == 64
    run_dir = stored.config.run_folder
    fetched = [path for path in stored.config.fetched.rglob("*") if path.is_file()]
    assert "config.json" in {path.name for path in fetched}
    assert not [path for path in fetched if path.suffix == ".safetensors"]
    assert not files_below(run_dir / "outputs")

    # A rerun reads no weight and writes nothing.
    before = len(server.reads(WEIGHTS))
    notes = Notes()
    (again,) = compress(stored.config, notes).outputs
    assert any("already there" in line for line in notes.lines)
    assert again.compression == output.compression
    assert set(server.reads(WEIGHTS)[before:]) == header_reads(stored.folder)

    with pytest.raises(ConfigError, match="another model, text, method, ratio or setting"):
        is_published(BUCKET / "output", "of another run")


def header_reads(base: Path) -> set[tuple[int, int]]:
    """The two reads of a header: its length, then itself."""
    first = min(tensor.offset or 0 for tensor in inspect(base).tensors)
    return {(0, 7), (8, first - 1)}


def test_no_byte_is_read_without_need(stored: Stored, made: Made) -> None:
    """Needed are: the header; every tensor once for calibration; a matrix once more at most to
    factorise it and once to cut it; what is not compressed once more, to be written.
    """
    spec = inspect(stored.folder)
    starts = {tensor.name: tensor.offset or 0 for tensor in spec.tensors}
    spans = {(starts[t.name], starts[t.name] + t.nbytes - 1): t.name for t in spec.tensors}
    header = header_reads(stored.folder)
    reads = [span for span in made.reads if span not in header]
    assert set(reads) == spans.keys()  # its own bytes and no others
    counts = Counter(spans[span] for span in reads)
    matrices = {f"model.{matrix.name}.weight" for matrix in spec.matrices}
    for name, count in counts.items():
        assert count <= (3 if name in matrices else 2), name


def test_a_run_directory_in_a_store(stored: Stored, text: Path, tmp_path: Path) -> None:
    """Everything is there, nothing on this machine; what is finished is found by the next run."""
    model = tiny_model(tmp_path / "model", num_hidden_layers=1)
    config = ask(model, text, tmp_path / "expected")
    compress(config)
    expected = weight_sums(local(config.output))
    run_dir, output = BUCKET / "run", tmp_path / "output"
    there = config.model_copy(update={"run_dir": run_dir, "output": output})
    compress(there)
    assert weight_sums(output) == expected
    require(verify_checkpoint(output, published=True), output)
    assert item_sums(run_dir, *KINDS) == item_sums(config.run_folder, *KINDS)
    left = {name.split("/")[0] for name in files_below(run_dir)}
    assert left == {*KINDS, "owner", "progress.json", "records", "run.json"}

    seen = item_attempts(run_dir, *KINDS)
    Store(run_dir).forget(next(key for key in seen if key.startswith("factors/")))
    evaluation = EvaluationTextConfig(text=str(text), sequence_length=64, windows=2)
    update = {"output": BUCKET / "again", "evaluation": evaluation}
    (result,) = compress(there.model_copy(update=update)).outputs
    assert all(check.passed for check in result.checks)
    assert result.evaluation
    assert result.evaluation.models[1].kl
    now = item_attempts(run_dir, *KINDS)
    assert sum(now[key] != attempt for key, attempt in seen.items()) == 1
    names = names_in(BUCKET / "again")
    (tmp_path / "again").mkdir()
    download({name: BUCKET / "again" / name for name in names}, tmp_path / "again")
    assert weight_sums(tmp_path / "again") == expected
    assert CliRunner().invoke(app, ["status", str(run_dir)]).exit_code == 0


@pytest.mark.filterwarnings("ignore:.*is deprecated")  # Ray Data's own settings
@pytest.mark.usefixtures("waits_for_reader")
def test_training_goes_on_from_a_store(stored: Stored, text: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=1)
    recovery = {"enabled": True, "sequence_length": 64, "batch": 2, "tokens": 768, "held_out": 2}
    asked = RecoveryConfig.model_validate(recovery | {"evaluations": 6})
    few = TargetsConfig(only=("o_proj",))  # so that the store is asked less
    config = ask(model, text, tmp_path / "expected", recovery=asked, targets=few)
    compress(config)
    run_dir, output, progress = BUCKET / "trained here", tmp_path / "output", Notes()
    killed = list[Process]()

    def kill(stage: Stage) -> None:
        if stage.name == "recover" and stage.done > 2 and not killed:
            killed.extend(kill_training_workers())

    progress.watchers.append(kill)
    compress(config.model_copy(update={"run_dir": run_dir, "output": output}), progress)
    assert killed
    assert sum("recover: step 0:" in line for line in progress.lines) == 1
    assert weight_sums(output) == weight_sums(local(config.output))
    assert not [name for name in files_below(run_dir) if name.startswith("training")]


@pytest.mark.usefixtures("made")
def test_a_command_takes_urls(stored: Stored, server: Server) -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(app, arguments).exit_code

    output = str(stored.config.output)
    assert run("verify", output) == 0
    asked = ["--text", *stored.config.calibration.text, "--sequence-length", "64"]
    asked += ["--windows", "2", "--device", "cpu"]
    assert run("evaluate", str(BASE), "--streamed", "--workers", "1", *asked) == 0
    assert server.reads(WEIGHTS)  # never whole
    assert run("evaluate", output, "--baseline", str(BASE), *asked) == 0
    assert run("plan", "--model", str(BASE), "--ratio", "0.2") == 0
    assert run("status", str(stored.config.run_dir)) == 0


def test_a_conditional_write_does_not_overwrite(stored: Stored) -> None:
    place = BUCKET / "claim"
    assert create(place, b"one")
    assert not create(place, b"two")
    assert read_bytes(place) == b"one"


def test_a_missing_bucket_is_refused(stored: Stored) -> None:
    config = stored.config.model_copy(update={"model": "s3://no-such-bucket/base"})
    with pytest.raises(CheckpointError, match="s3://no-such-bucket/base: no file there; check"):
        compress(config)
    assert not exists(Url("s3://no-such-bucket/base/config.json"))
