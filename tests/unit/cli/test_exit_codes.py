"""What a command says of errors that are not raised on purpose."""

import re
import subprocess
import sys

import pytest
import torch
import typer

from pipeline.cli.exit_codes import exit_codes
from tests.documents import ROOT


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore."), "CUDA .* Tried 2 GiB."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: .*"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_lack_of_memory_has_a_remedy(
    error: Exception, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(typer.Exit) as caught, exit_codes():
        raise error
    assert caught.value.exit_code == 3
    [said] = caplog.messages
    assert re.fullmatch(rf"error: out of memory \({named}\); evaluate with --streamed .*", said)


def test_a_bug_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), exit_codes():
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("left", [True, False])
def test_a_reader_who_leaves_is_no_failed_run(left: bool) -> None:
    """`svdllm compress --help | head` says no more than head asked for."""
    program = (
        "from pipeline.cli.exit_codes import exit_codes\n"
        "with exit_codes():\n"
        "    input()\n"
        "    raise BrokenPipeError(32, 'Broken pipe')"
    )
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if left:
            process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        log = process.stderr.read()
    assert (b"the run failed" in log) is not left
