"""What a stopped calibration leaves behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipeline.progress import Progress
from pipeline.stages.calibrate import calibrate
from schemas.run.identity import Identities
from workers.storage.keys import boundary_key
from workers.storage.store import Store
from workers.storage.tensorfile import entries

IDS = Identities(forward="f", backward="b", bases="c", factors="d")


def test_a_run_stopped_after_its_last_moment_leaves_no_rows_of_waves(tmp_path: Path) -> None:
    store, rows = Store(tmp_path), entries({"rows": torch.zeros(1)})
    stays = boundary_key("comparison", 2, "hidden", 0)
    for key in (
        boundary_key("f", 1, "hidden", 0),
        boundary_key("b", 1, "gradient", 0),
        "parts/f/layers.0.0-of-2.safetensors",
        stays,
    ):
        store.commit(key, rows)
    run: Any = SimpleNamespace(
        ids=IDS, taps=[], progress=Progress(), there=lambda _: {}, discard=store.discard
    )
    calibrate(run)
    assert [record.key for record in store.records("")] == [stays]
