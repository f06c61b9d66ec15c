"""What ran in a run directory before: gone on with, refused with what differs, or set aside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.progress import Progress
from pipeline.run_directory.earlier import require_same, set_aside
from pipeline.run_directory.ownership import take
from schemas.errors import ConfigError, OwnershipError
from schemas.location import Url
from schemas.run.record import RunRecord
from tests.unit.run_directory.conftest import GROUND
from workers.storage.places import write


@pytest.fixture
def ran(tmp_path: Path, record: Callable[..., RunRecord]) -> Path:
    """A run directory with the record of a run."""
    write(tmp_path / "run" / "run.json", record().model_dump_json().encode())
    return tmp_path / "run"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ratio": [0.3, 0.4]},
        {"factors": "plain"},
        {"allocation": {"method": "uniform"}},
        {"truncation": "input-only"},
        {"truncation": "input-only", "allocation": {"method": "uniform"}},
        {"cluster": {"workers": 3, "replicas": 2, "keep_bases": False}},
        {"numerics": {"shrinkage": 0.05}},
    ],
)
def test_what_needs_the_same_moments_goes_on(
    fields: dict[str, Any], ran: Path, record: Callable[..., RunRecord]
) -> None:
    require_same(ran, record(**fields))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"numerics": {"threads": 2}}, "numerics.threads: 1 -> 2"),
        ({"calibration": {"segments": 4}}, "calibration.segments: 8 -> 4"),
        ({"ground": {"versions": {"torch": "2.14.0"}}}, "torch: 2.13.0 -> 2.14.0"),
        ({"ground": {"dtype": "bfloat16"}}, "dtype: float32 -> bfloat16"),
        (
            {"ground": {"base_files": GROUND.base_files | {"model.safetensors": "e" * 64}}},
            "file model.safetensors of the base: dddddddddddd -> eeeeeeeeeeee",
        ),
        ({"ground": {"base_files": {"config.json": "c" * 64}}}, "dddddddddddd -> none"),
        (
            {"ground": {"forward_tokens": "g"}, "calibration": {"samples": 128}},
            "calibration.samples: 256 -> 128. Ask",
        ),
        ({"ground": {"forward_tokens": "g"}}, "the content of wikitext2, or the tokenizer. Ask"),
    ],
)
def test_other_moments_are_refused_with_what_differs(
    asked: dict[str, Any], said: str, ran: Path, record: Callable[..., RunRecord]
) -> None:
    with pytest.raises(ConfigError) as caught:
        require_same(ran, record(**asked))
    assert said in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_items_of_another_version_are_refused_by_that_name(
    ran: Path, record: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.run.identity._ARTEFACTS", 0)
    with pytest.raises(ConfigError, match=r"another identity: items of another version .* --fresh"):
        require_same(ran, record())


@pytest.mark.parametrize("content", [b"", b"{}", b"of another version"])
def test_a_record_that_says_nothing_keeps_nobody_out(
    content: bytes, ran: Path, record: Callable[..., RunRecord]
) -> None:
    """Items are named by what they depend on, so none can be mistaken for another."""
    write(ran / "run.json", content)
    require_same(ran, record(seed=1))


def test_what_ran_before_is_kept_beside(ran: Path) -> None:
    for number in (1, 2):
        before = (ran / "run.json").read_bytes()
        set_aside(ran, Progress())
        assert not ran.exists()
        assert (ran.with_name(f"run.{number}") / "run.json").read_bytes() == before
        write(ran / "run.json", b"the next one")
    set_aside(ran.with_name("not there"), Progress())


@pytest.mark.parametrize("run", [".", "rounds/1/run"])
def test_what_runs_is_not_set_aside(ran: Path, run: str) -> None:
    take(ran / run / "owner", pytest.fail)
    with pytest.raises(OwnershipError, match="is at work"):
        set_aside(ran, Progress())
    assert (ran / "run.json").exists()


def test_a_run_in_a_store_is_not_set_aside(url: Url) -> None:
    set_aside(url, Progress())
    write(url / "run.json", b"{}")
    with pytest.raises(ConfigError, match="name another one"):
        set_aside(url, Progress())
