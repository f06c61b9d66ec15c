"""Which outputs are still to be trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages.recover import awaits_recovery
from schemas.request.recovery import RecoveryConfig
from tests.recovery import job_of
from workers.storage.keys import recovered_key, recovered_norms_key
from workers.storage.store import Store

RESULT, CUT, NORMS = (
    recovered_key("output", None),
    recovered_key("output", "cut"),
    recovered_norms_key("output"),
)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("forgotten", [RESULT, CUT, NORMS])
def test_what_was_trained_and_forgotten_is_trained_again(
    tmp_path: Path, forgotten: str, norms: bool
) -> None:
    recovery = RecoveryConfig(enabled=True, norms=norms)
    config = job_of(tmp_path).config.model_copy(update={"recovery": recovery})
    store, ranks = Store(tmp_path), {"cut": 2, "dense": None}
    output: Any = SimpleNamespace(
        run=SimpleNamespace(config=config, store=store),
        identity="output",
        allocation=SimpleNamespace(ranks=ranks),
    )
    assert awaits_recovery(output)
    for key in (RESULT, CUT, NORMS):
        store.commit(key, [])
    assert not awaits_recovery(output)
    store.forget(forgotten)
    assert awaits_recovery(output) == (norms or forgotten != NORMS)
