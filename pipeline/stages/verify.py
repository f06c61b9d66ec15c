"""Verify: a checkpoint before it is published, looked at by a worker."""

import uuid
from collections.abc import Mapping
from pathlib import Path

from pipeline.cluster.pool import Task
from pipeline.run import Run
from schemas.result.manifest import Check
from workers.storage.keys import STAGING
from workers.storage.places import remove_below, upload


def check(run: Run, folder: Path, weights: Mapping[str, str]) -> list[Check]:
    """What a worker finds in the checkpoint. Raises QuarantineError where none can look at it."""
    root, found = run.store.root, list[Check]()

    def look(method: str, *arguments: object) -> None:
        run.pool.run([Task("verify", method, arguments, found.extend)])
        run.pool.quarantine.require()

    if isinstance(root, Path):
        look("verify", str(folder))
        return found
    prefix = root / STAGING / uuid.uuid4().hex[:12]
    try:
        for path in folder.iterdir():
            upload(path, prefix / path.name)
        look("verify_stored", prefix, dict(weights))
    finally:
        remove_below(prefix)
    return found
