"""What becomes of a checkpoint that was checked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pipeline.progress import Progress
from pipeline.stages import verify as module
from pipeline.stages.output import Output
from pipeline.stages.verify import forget, verify
from schemas.result.manifest import Check


def test_what_could_not_be_judged_is_said_and_published_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check(name="files", passed=True), Check(name="load", passed=None, detail="no room")]
    monkeypatch.setattr(module, "_look", lambda output: output.checks.extend(checks))
    run = SimpleNamespace(progress=Progress())
    output: Any = SimpleNamespace(run=run, checks=[], staging=tmp_path)
    verify(output)
    [said] = run.progress.warnings
    assert said.startswith("verify: load: not judged (no room); it is published all the same")


@pytest.mark.parametrize(
    ("checks", "forgotten", "discarded"),
    [
        ([Check(name="files", passed=False, files=("a", "config.json"))], ["outputs/1/a"], []),
        ([Check(name="loss", passed=False)], [], ["outputs/1"]),
        (
            [Check(name="files", passed=False, files=("a",)), Check(name="loss", passed=False)],
            [],
            ["outputs/1"],
        ),
    ],
)
def test_only_what_is_wrong_is_written_anew(
    checks: list[Check], forgotten: list[str], discarded: list[str]
) -> None:
    run: Any = mock.Mock(given_up={}, ids=mock.Mock(output=lambda *_: "1"))
    output = Output(run, 0.2, files=dict.fromkeys("abc", mock.Mock()), checks=checks)
    forget(output)
    assert [call.args[0] for call in run.store.forget.call_args_list] == forgotten
    assert [call.args[0] for call in run.discard.call_args_list] == discarded
