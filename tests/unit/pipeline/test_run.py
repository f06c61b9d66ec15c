"""What a run plans, now that its inputs are known."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.request.adopt import Adopted
from pipeline.request.inputs import Inputs, RecoveryText
from pipeline.run import _counted
from schemas.request.recovery import RecoveryConfig
from tests import reports
from tests.recovery import RESULT, job_of


@pytest.mark.parametrize("trained", [False, True])
def test_norms_that_were_trained_before_are_held_beside_the_base(
    tmp_path: Path, trained: bool
) -> None:
    before = RESULT.model_copy(update={"config": RecoveryConfig(enabled=True, norms=trained)})
    made = reports.compression((), earlier=(before,), recovery=RESULT)
    unused: Any = None
    windows = torch.zeros(2, 8, dtype=torch.int64)
    inputs = Inputs(
        folder=tmp_path,
        spec=unused,
        base_files={},
        forward=windows[:0],
        backward=None,
        recovery=RecoveryText(windows, windows),
        adopted=Adopted(unused, made),
    )
    config = job_of(tmp_path / "run").config
    assert not config.recovery.norms
    assert _counted(config, inputs).recovery.norms == trained
