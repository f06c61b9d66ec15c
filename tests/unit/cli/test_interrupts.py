"""SIGINT and SIGTERM: one exit code and one line, whatever becomes of the exception."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from pipeline.cli import interrupts
from pipeline.cli.exit_codes import exit_codes
from schemas.errors import WorkerError
from tests.documents import ROOT

CODES = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
AGAIN = "the same command goes on from its run directory, or begins again if it has none"
# A library that takes its time to import, and is interrupted.
SLOW = "import os, signal\nos.kill(os.getpid(), signal.{name})\nimport time\ntime.sleep(600)\n"


@pytest.fixture(autouse=True)
def _handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of the tests stand again afterwards, and no signal of another test is known."""
    monkeypatch.setattr(interrupts, "_received", [])
    before = {number: signal.getsignal(number) for number, _, _ in CODES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def code_of(command: Callable[[], object]) -> int:
    """The exit code of a command."""
    with pytest.raises(typer.Exit) as caught, exit_codes():
        command()
    return caught.value.exit_code


def signalled(number: signal.Signals, becomes: BaseException | None) -> None:
    """A command that a signal ends; native code makes another error of it, or none."""
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        if becomes is None:
            raise
        raise becomes from None


@pytest.mark.parametrize(("number", "code", "word"), CODES)
@pytest.mark.parametrize(
    "becomes", [None, SystemError("a result with an exception set"), SystemExit(15)]
)
def test_a_signal_is_the_outcome_whatever_is_made_of_it(
    number: signal.Signals,
    code: int,
    word: str,
    becomes: BaseException | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupts.install()
    assert code_of(lambda: signalled(number, becomes)) == code
    assert caplog.messages == [f"{word}; {AGAIN}"]


def test_the_first_of_two_signals_counts() -> None:
    interrupts.install()

    def twice() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    assert code_of(twice) == 143


class Removed:
    """Is signalled while it is removed, where Python forgets what is raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_swallowed_comes_again() -> None:
    interrupts.install()

    def swallow() -> None:
        removed = [Removed()]
        removed.clear()
        time.sleep(600)  # until the second one

    assert code_of(swallow) == 130


def test_an_error_without_a_signal_is_that_error() -> None:
    interrupts.install()

    def fail() -> None:
        raise WorkerError("lost")

    assert code_of(fail) == 3


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(("number", "code", "word"), CODES)
def test_a_command_is_interrupted_while_its_libraries_are_imported(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text(SLOW.format(name=number.name))
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.__main__ import main; main()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"{word}; {AGAIN}\n"


def test_a_signal_after_the_end_changes_nothing(tmp_path: Path) -> None:
    """What is left then is what others registered for the exit of the process."""
    late = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    code = (
        f"{late}import sys\nsys.argv[1:] = ['--help']\nfrom pipeline.__main__ import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
