"""A finished run at other ratios: `svdllm export RUN --ratio R`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pipeline.compress
import pipeline.request.preflight
from pipeline.cli.app import app
from pipeline.request.again import at_ratios
from pipeline.run_directory.status import read_status
from schemas.errors import ConfigError
from schemas.request.config import RunConfig
from schemas.request.export import ExportConfig
from schemas.run.record import RunRecord
from workers.storage.keys import RUN_RECORD, neurons_key
from workers.storage.places import write
from workers.storage.store import Store
from workers.storage.tensorfile import entries


@pytest.fixture
def ran(tmp_path: Path, record: Callable[..., RunRecord]) -> Callable[..., Path]:
    """A run directory that is finished, of a run that asked for what is given."""

    def make(**asked: Any) -> Path:
        run = record(**asked).model_copy(update={"matrices": 0})
        write(tmp_path / "run" / RUN_RECORD, run.model_dump_json().encode())
        return tmp_path / "run"

    return make


def again(run_dir: Path) -> RunConfig:
    return at_ratios(ExportConfig(checkpoint=str(run_dir), ratio=0.5, output="new"))


@pytest.mark.parametrize("asked", [{"seed": 3}, {"ratio": (), "budget": {"perplexity": 0.1}}])
def test_all_but_the_ratio_and_the_output_is_as_it_was(
    ran: Callable[..., Path], asked: dict[str, Any]
) -> None:
    run_dir = ran(**asked)
    config = again(run_dir)
    assert (config.ratio, config.output, config.run_folder) == ((0.5,), Path("new"), run_dir)
    before = RunRecord.model_validate_json((run_dir / RUN_RECORD).read_bytes()).config
    same = {"ratio", "output", "run_dir", "budget"}
    assert config.model_dump(exclude=same) == before.model_dump(exclude=same)


def test_what_another_request_left_there_is_not_missing(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    """Neurons alone take no basis, and fewer moments than are there."""
    taps = {"forward": 1, "backward": 0}
    asked = record(method="neurons").model_copy(update={"taps": taps, "matrices": 0, "mlps": 1})
    asked = asked.model_copy(update={"ids": asked.ids.model_copy(update={"backward": "b"})})
    write(tmp_path / "run" / RUN_RECORD, asked.model_dump_json().encode())
    store, ids = Store(tmp_path / "run"), asked.ids
    for key in ("x", "y"):
        store.commit(f"moments/{ids.forward}/{key}.safetensors", entries({}))
    with pytest.raises(ConfigError, match="factorise has 0 of 1; start the command"):
        again(tmp_path / "run")
    store.commit(neurons_key(ids, "layers.0.mlp.down_proj"), entries({}))
    assert again(tmp_path / "run").ratio == (0.5,)
    found = {
        stage.name: (stage.done, stage.total) for stage in read_status(tmp_path / "run").stages
    }
    assert found == {
        "forward": (1, 1),
        "backward": (0, 0),
        "factorise": (1, 1),
        "truncate": (0, None),
    }


def test_a_run_that_has_something_left_to_measure_is_finished_first(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    write(tmp_path / "run" / RUN_RECORD, record().model_dump_json().encode())
    with pytest.raises(ConfigError, match="factorise has 0 of 14; start the command"):
        again(tmp_path / "run")


def test_a_finished_run_may_lack_what_could_not_be_factorised(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    made = record(on_failure="keep_dense").model_copy(
        update={"outputs": {str(tmp_path / "a"): "x"}}
    )
    write(tmp_path / "run" / RUN_RECORD, made.model_dump_json().encode())
    write(tmp_path / "a" / "_SUCCESS", b"")
    assert again(tmp_path / "run").ratio == (0.5,)


@pytest.mark.parametrize(
    "asked",
    [
        {"rounds": 2, "recovery": {"enabled": True}},
        {"adopt": "cut", "refinement": {"enabled": True}},
    ],
)
def test_a_run_that_cut_nothing_of_the_base_has_no_other_ratio(
    ran: Callable[..., Path], asked: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="measured nothing for other ratios"):
        again(ran(**asked))


def test_the_command_compresses(ran: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[RunConfig]()
    monkeypatch.setattr(pipeline.request.preflight, "check", lambda config: config)
    monkeypatch.setattr(pipeline.compress, "compress", asked.append)
    run_dir = ran()
    CliRunner().invoke(app, ["export", str(run_dir), "--ratio", "0.3,0.5", "--output", "new"])
    (config,) = asked
    assert (config.ratio, config.run_folder) == ((0.3, 0.5), run_dir)


def test_one_thing_is_asked_for(ran: Callable[..., Path]) -> None:
    result = CliRunner().invoke(
        app, ["export", str(ran()), "--ratio", "0.3", "--dense", "--output", "x"]
    )
    assert result.exit_code == 2
