"""GPUs are asked for before a command runs, and let go however it ends."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from deploy import with_gpus
from pipeline.cli.nightly import NOTHING_WAITS

EXIT_7 = [sys.executable, "-c", "raise SystemExit(7)"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many GPUs were asked for, call by call, of a cluster that gets two more at every look."""
    calls: list[int] = []
    looks = iter(range(0, 100, 2))

    def request(bundles: list[dict[str, int]]) -> None:
        assert all(bundle == {"GPU": 1} for bundle in bundles)
        calls.append(len(bundles))

    def resources() -> dict[str, Any]:
        there = next(looks)
        return {"GPU": float(there)} if there else {}

    monkeypatch.setattr(with_gpus, "request_resources", request)
    monkeypatch.setattr("ray.cluster_resources", resources)
    monkeypatch.setattr(with_gpus, "sleep", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    yield calls
    signal.signal(signal.SIGTERM, before)


def test_the_command_runs_when_all_are_there(
    asked: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert with_gpus.with_gpus(4, 1e9, EXIT_7) == 7
    assert asked == [4, 4, 4, 0]
    assert [line[0] for line in capfd.readouterr().out.splitlines()] == ["0", "2", "4"]


def test_it_runs_with_those_that_came_in_time(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(with_gpus, "monotonic", lambda: next(clock))
    assert with_gpus.with_gpus(8, 10.0, EXIT_7) == 7
    assert asked == [8, 8, 0]


def test_a_request_that_is_not_heard_fails_no_command(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(bundles: object) -> None:
        raise RayError("deadline exceeded")

    monkeypatch.setattr(with_gpus, "request_resources", fail)
    assert with_gpus.with_gpus(4, 1e9, EXIT_7) == 7
    assert "the autoscaler did not answer: deadline exceeded" in capfd.readouterr().out


def test_without_any_it_does_not_run(asked: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    assert with_gpus.with_gpus(8, -1.0, EXIT_7) == 3
    assert asked == [8, 0]
    assert "no GPU came" in capfd.readouterr().out


def test_a_job_that_is_stopped_while_it_waits_lets_them_go(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_gpus, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        with_gpus.with_gpus(8, 1e9, EXIT_7)
    assert stopped.value.code == 143
    assert asked == [8, 0]


def test_a_job_that_is_stopped_while_it_runs_lets_them_go_at_once(asked: list[int]) -> None:
    stop = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); raise SystemExit(143)"
    assert with_gpus.with_gpus(2, 1e9, [sys.executable, "-c", stop]) == 143
    assert asked == [2, 2, 0, 0]


# Ends well once a file is there; gives up when nothing can come any more.
WAITS = """
import pathlib, sys, time
for _ in range(60_000):
    if pathlib.Path(sys.argv[1]).exists():
        sys.exit()
    time.sleep(0.01)
sys.exit("it was not asked for again")
"""


def test_a_request_that_another_job_withdraws_is_made_again(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request: Any = vars(with_gpus)["request_resources"]
    often = tmp_path / "often"

    def noticed(bundles: list[dict[str, int]]) -> None:
        request(bundles)
        if len(asked) == 6:
            often.touch()

    monkeypatch.setattr(with_gpus, "request_resources", noticed)
    monkeypatch.setattr(with_gpus, "_ASK_EVERY_S", 0.01)
    assert with_gpus.with_gpus(2, 1e9, [sys.executable, "-c", WAITS, str(often)]) == 0
    assert asked == [2] * (len(asked) - 1) + [0]


@pytest.mark.parametrize(
    ("said", "code", "requests"),
    [(NOTHING_WAITS, 0, []), (2, 2, []), (0, 0, [2, 2, 0])],
)
def test_nothing_is_asked_for_if_a_look_finds_no_work(
    said: int, code: int, requests: list[int], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"import sys; raise SystemExit({said} * ('--look' in sys.argv))"
    words = ["with_gpus.py", "--look", "2", sys.executable, "-c", command]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("ray.init", lambda **_: None)
    assert (with_gpus.main(), asked) == (code, requests)


def test_nothing_is_asked_for_without_a_command(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["with_gpus.py", "8"])
    monkeypatch.setattr("ray.init", lambda **_: asked.append(-1))
    with pytest.raises(SystemExit) as refused:
        with_gpus.main()
    assert (refused.value.code, asked) == (2, [])
    assert "no command" in capsys.readouterr().err
