"""The log: as lines for people, or as JSON by option, with what each line is about."""

import io
import json
import sys
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cluster.quarantine import Failed, Quarantine
from pipeline.progress import Progress
from workers.process.logs import LOG_FORMAT, about, about_matrices, log, now_about, set_up_logging

SECRET = "wJalrXUtnFEMI/K7MDENG"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment as it was."""
    monkeypatch.delenv(LOG_FORMAT, raising=False)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What is logged as JSON."""
    shown = io.StringIO()
    monkeypatch.setenv(LOG_FORMAT, "json")
    set_up_logging()
    monkeypatch.setattr(type(log.handlers[0]), "stream", shown)
    return lambda: [json.loads(line) for line in shown.getvalue().splitlines()]


def apart(run: Callable[[], None]) -> None:
    """Run what says what later lines are about: it sees nothing of other tests, nor they of it."""
    Context().run(run)


def test_a_line_goes_to_what_standard_error_is_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live bar stands for it, and puts the line above itself."""
    set_up_logging()
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    apart(lambda: log.warning("a worker died"))
    assert shown.getvalue().endswith("a worker died\n")


def test_a_line_is_one_object(lines: Lines) -> None:
    apart(lambda: log.warning("a\nb: %s", "\x1b[31m\u2028c"))
    (found,) = lines()
    assert found.keys() == {"time", "level", "message"}
    assert datetime.fromisoformat(found["time"]).utcoffset() is not None
    assert (found["level"], found["message"]) == ("WARNING", r"a b: \x1b[31m\u2028c")


def test_a_line_says_what_it_is_about(lines: Lines) -> None:
    def run() -> None:
        now_about(run="/out.run")
        with Progress(Console(stderr=True)).stage("factorise", 2, "matrices"):
            with about_matrices(["layers.11.mlp.up_proj"]):
                log.info("one")
            with about_matrices(["layers.3.self_attn.q_proj", "layers.3.self_attn.k_proj"]):
                log.info("a group")
            with about_matrices(["layers.3.mlp.up_proj", "layers.4.mlp.up_proj"]):
                log.info("of two layers")
            with about_matrices(["h.5.attn.c_attn.0", "h.5.attn.c_attn.1"]):
                log.info("of another kind")

    apart(run)
    rows = [{k: v for k, v in row.items() if k not in ("time", "level")} for row in lines()]
    common = {"run": "/out.run", "stage": "factorise"}
    matrix = {"layer": 11, "matrix": "layers.11.mlp.up_proj"}
    assert rows[:4] == [
        {"message": "one", **common, **matrix},
        {"message": "a group", **common, "layer": 3},
        {"message": "of two layers", **common},
        {"message": "of another kind", **common, "layer": 5},
    ]
    assert rows[4].keys() == {"message", "run", "stage"}


def test_what_was_given_up_is_named(lines: Lines) -> None:
    Quarantine(log.warning).add(Failed("cut x", ("layers.2.mlp.up_proj",), 1, "not finite"))
    (found,) = lines()
    assert (found["layer"], found["matrix"]) == (2, "layers.2.mlp.up_proj")


def test_secrets_are_hidden_in_every_field(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with about(run=f"s3://user:{SECRET}@bucket/run", stage=SECRET):
        log.error("the store said: %s", SECRET)
    (found,) = lines()
    assert found["message"] == "the store said: ***"
    assert (found["run"], found["stage"]) == ("s3://***@bucket/run", "***")


def test_no_part_of_a_secret_is_left(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", SECRET[:10])  # the start of another
    monkeypatch.setenv("B_KEY", f"{SECRET}\n")  # as read from a file
    log.error("the store said: %s", SECRET)
    log.error("%s", "." * 990 + SECRET + "." * 2000)  # where a long line is cut
    one, other = lines()
    assert one["message"] == "the store said: ***"
    assert set(other["message"]) == {".", " ", "*"}


def test_a_terminal_gets_no_bars_between_the_objects(lines: Lines) -> None:
    shown = io.StringIO()

    def run() -> None:
        with Progress(Console(file=shown, force_terminal=True)).stage("load", 1, "shards") as stage:
            stage.advance()

    apart(run)
    assert shown.getvalue() == ""
    assert [row["stage"] for row in lines()] == ["load"]


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--log-format", "json"], {}), ([], {LOG_FORMAT: "json"})],
    ids=["option", "environment"],
)
def test_it_is_asked_for_by_option_or_by_environment(
    arguments: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_FORMAT, "text")  # so that what the option sets is taken back
    found = CliRunner(env=environment).invoke(app, [*arguments, "status", "absent"])
    assert found.exit_code == 2
    (row,) = [json.loads(line) for line in found.stderr.splitlines()]
    assert row["level"] == "ERROR"
    assert "absent/run.json" in row["message"]


def test_another_format_is_refused() -> None:
    found = CliRunner().invoke(app, ["--log-format", "xml", "status", "absent"])
    assert found.exit_code == 2
    assert "xml" in found.output
