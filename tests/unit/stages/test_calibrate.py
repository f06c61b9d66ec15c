"""What a stopped calibration leaves behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.cluster.quarantine import Failed, Quarantine
from pipeline.progress import Progress
from pipeline.stages import calibrate as stage
from pipeline.stages.calibrate import Calibration, calibrate, forget_streams
from schemas.request.config import RunConfig
from schemas.run.identity import Identities
from schemas.run.plan import LayerRange
from workers.storage.keys import boundary_key
from workers.storage.store import Store
from workers.storage.tensorfile import entries

IDS = Identities(forward="f", backward="b", bases="c", factors="d")
PART = "parts/f/layers.0.0-of-2.safetensors"


def test_a_run_stopped_after_its_last_moment_leaves_no_rows_of_waves(tmp_path: Path) -> None:
    store, rows = Store(tmp_path), entries({"rows": torch.zeros(1)})
    stays = boundary_key("comparison", 2, "hidden", 0)
    for key in (
        boundary_key("f", 1, "hidden", 0),
        boundary_key("b", 1, "gradient", 0),
        PART,
        stays,
    ):
        store.commit(key, rows)
    run: Any = SimpleNamespace(
        ids=IDS, taps=[], progress=Progress(), there=lambda _: {}, discard=store.discard
    )
    calibrate(run)
    forget_streams(run)
    assert [record.key for record in store.records("")] == [stays]


@pytest.mark.parametrize(
    ("given_up", "left"),
    [
        ([], []),
        ([Failed("factorise q", ("q",), 1, "q holds NaN")], []),
        ([Failed("merge moments of layer 0", (), 3, "the storage does not answer")], [PART]),
    ],
)
def test_sums_of_replicas_stay_until_they_are_merged(
    given_up: list[Failed], left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "commit", lambda *_, **__: None)
    store, quarantine = Store(tmp_path), Quarantine(lambda _: None)
    store.commit(PART, entries({"high": torch.zeros(1)}))
    for failed in given_up:
        quarantine.add(failed)
    run: Any = SimpleNamespace(
        ids=IDS,
        config=RunConfig(model="m", output=tmp_path / "o", ratio=(0.2,)),
        inputs=SimpleNamespace(forward=torch.zeros(2, 4), backward=None),
        plan=SimpleNamespace(waves=[(LayerRange(start=0, stop=1),)]),
        chains=[],
        pool=SimpleNamespace(quarantine=quarantine),
        discard=store.discard,
    )
    Calibration(run, [])._commit(0, "forward")
    assert [record.key for record in store.records("")] == left
