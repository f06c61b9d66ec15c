"""A model in a process of its own: how it fails, and how it ends."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from schemas.errors import WorkerDiedError, WorkerError
from schemas.request.bench import BenchConfig, Workload
from tests.documents import ROOT
from workers.serving import process
from workers.serving.process import ModelProcess


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for threads
def test_a_process_that_ends_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(process, "get_context", lambda _: fork)  # imports nothing anew
    with ModelProcess("the model", model, BenchConfig(checkpoint=str(model))) as one:
        one._pool.submit(os._exit, 1)
        with pytest.raises(WorkerDiedError, match="the model: its process ended during load"):
            one.load()


class _Fails:
    def prepare(self) -> None:
        raise _FrameError(sys._getframe())


class _FrameError(RuntimeError):
    def __str__(self) -> str:
        return "no compiler\nand much more"


def test_a_library_that_fails_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_here", [_Fails()])
    with pytest.raises(RuntimeError) as caught:
        process._do("prepare", ())
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own)
    one = ModelProcess("the model", model, BenchConfig(checkpoint=str(model)))
    monkeypatch.setattr(one, "_pool", Mock(submit=Mock(side_effect=again)))
    with pytest.raises(WorkerError, match=r"^the model: _FrameError: no compiler, in prepare$"):
        one.prepare(Workload(batch=1, prompt_tokens=6, new_tokens=4))


PARENT = """
import os, signal, sys
from pathlib import Path
from schemas.request.bench import BenchConfig
from workers.serving.process import ModelProcess
if __name__ == "__main__":
    folder = sys.argv[1]
    with ModelProcess("the model", Path(folder), BenchConfig(checkpoint=folder)) as process:
        process._pool.submit(os.getpid).result()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_ends_with_a_parent_that_is_killed(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    # Its output is at an end once every process that holds it has ended: the model's, too.
    done = subprocess.run(
        [sys.executable, script, model],
        capture_output=True,
        timeout=600,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
