"""What a command says of errors that are not raised on purpose."""

import re

import pytest
import torch
import typer

from pipeline.cli.exit_codes import exit_codes


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


def test_a_reader_who_leaves_is_no_failed_run(caplog: pytest.LogCaptureFixture) -> None:
    """`svdllm compress --help | head` says no more than head asked for."""
    with pytest.raises(BrokenPipeError), exit_codes():
        raise BrokenPipeError
    assert not caplog.messages
