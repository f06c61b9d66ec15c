"""What is shown and logged: no credential, nothing that a terminal obeys, one line."""

import logging
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from pipeline.cli.tables.evaluation import evaluation_table
from pipeline.request.flags import build, explain
from schemas.errors import CheckpointError
from schemas.location import locate
from schemas.printable import has_credentials, printable
from schemas.request.config import RunConfig
from schemas.request.groups import ClusterConfig
from tests.reports import evaluation
from workers.process.logs import log, set_up_logging

SECRET = "wJalrXUtnFEMI/K7MDENG"
URLS = [
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/model",
    f"https://user:{SECRET}@host/model",
    f"https://{SECRET.replace('/', '')}@host/model",
    f"https://host/model?X-Amz-Signature={SECRET}&x=1",
    f"https://host/model?x=1&access_token={SECRET}",
    "https://host/hf_abcdefghijklmnop/model",
]
PLAIN = ["s3://bucket/model", "http://host:9000/model", "gs://bucket/a@b", "s3://bucket/a=b?x=1"]


@pytest.mark.parametrize("url", URLS)
def test_a_credential_is_hidden_wherever_it_stands(url: str) -> None:
    for text in (url, f"cannot read {url}: no", f"{url!r}, {url}"):
        shown = printable(text)
        assert "***" in shown
        for secret in (SECRET, SECRET.replace("/", ""), "hf_abcdefghijklmnop", "AKIAIOSFODNN7"):
            assert secret not in shown


@pytest.mark.parametrize("url", URLS)
def test_a_place_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    assert has_credentials(url)
    with pytest.raises(ValueError, match="carries credentials; give them by the environment") as e:
        locate(url)
    assert SECRET not in str(e.value)
    with pytest.raises(ValidationError) as caught:
        build(RunConfig, {"model": "m", "ratio": "0.2", "output": url})
    [line] = explain(caught.value)
    assert "carries credentials" in line
    assert SECRET not in line


@pytest.mark.parametrize("url", PLAIN)
def test_a_place_without_credentials_stays_as_it_is(url: str) -> None:
    assert not has_credentials(url)
    assert str(locate(url)) == printable(url) == url


def test_an_address_with_credentials_is_refused() -> None:
    assert ClusterConfig(address="ray://head:10001").address == "ray://head:10001"
    with pytest.raises(ValidationError, match="use RAY_AUTH_TOKEN"):
        ClusterConfig(address=f"ray://user:{SECRET}@head:10001")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nerror: b", "a error: b"),
        ("a\x9b31m", r"a\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("a\ud800", r"a\ud800"),
        ("größe 12 €", "größe 12 €"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(CheckpointError(f"tensor {text}")) == f"tensor {shown}"


def test_a_long_name_keeps_both_ends() -> None:
    shown = printable(f"file {'x' * 10**6}: not found")
    assert shown.startswith("file xxx")
    assert shown.endswith("xxx: not found")
    assert len(shown) < 2100


def test_an_error_comes_back_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("a\x1b")))  # noqa: S301 (its own)
    assert (type(error), str(error)) == (CheckpointError, r"a\x1b")


def test_the_log_hides_what_the_environment_keeps_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    set_up_logging()
    log.info("the store said: %s\x1b[31m is wrong", SECRET)
    assert capsys.readouterr().err.endswith(" INFO the store said: ***\\x1b[31m is wrong\n")
    assert logging.getLogger("svdllm") is log


def test_names_and_samples_are_no_markup(tmp_path: Path) -> None:
    found = evaluation(sample="one\x1b]0;title\x07\ntwo [/]")
    model = found.models[1].model_copy(update={"name": "org/[red]\x1b[2Jname"})
    report = found.model_copy(update={"text": "[red]a\x1b.txt", "models": (model,)})
    with (tmp_path / "out").open("w+") as file:
        Console(file=file, force_terminal=True, width=200, color_system=None).print(
            evaluation_table(report)
        )
        file.seek(0)
        shown = file.read()
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    for text in (r"[red]a\x1b.txt", r"[red]\x1b[2Jname", r"one\x1b]0;title\x07", "two [/]"):
        assert text in shown
