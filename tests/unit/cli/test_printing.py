"""What a command prints: whole paths, and tables on any terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.printing import show
from pipeline.cli.tables.run import run_table
from pipeline.cli.tables.status import status_table
from schemas.result.manifest import OutputResult, RunResult
from schemas.run.record import RunStatus
from tests import reports
from tests.documents import ROOT
from tests.unit.report.test_compare import written

LONG = Path("/shared/" + "checkpoints/" * 12 + "ratio-0.20")


def test_paths_of_results_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    done = reports.compression(reports.matrices(2))
    output = OutputResult(ratio=0.2, path=LONG, compression=done, checks=())
    show(
        run_table(
            RunResult(
                outputs=(output,), seconds={}, busy={}, driver_peak_bytes=1, worker_peak_bytes=()
            )
        )
    )
    assert str(LONG) in capsys.readouterr().out.splitlines()


def test_paths_of_a_status_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        status_table(
            RunStatus(model="m", owner="", activity=None, stages=(), outputs={str(LONG): True})
        )
    )
    assert f"{LONG}: published" in capsys.readouterr().out.splitlines()


def test_a_table_is_printed_whatever_the_encoding(tmp_path: Path) -> None:
    """Of a report, whose table has signs that ASCII lacks."""
    folder, page = written(tmp_path / "checkpoint"), tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "report", str(folder), "--output", str(page)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2212" in done.stdout
    assert page.is_file()
