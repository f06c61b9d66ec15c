"""A checkpoint before it is published: a folder that is private to one attempt.

Where the run directory is a folder, so is this one, below it, with the weights as hard links to
their items. Where it is a prefix in an object store, the small files are in a temporary folder of
the driver, and the weights stay where they are until somebody needs them.
"""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.pool import Task
from pipeline.run import Run
from schemas.location import Url
from schemas.manifest import Check
from workers.items import STAGING
from workers.objects import remove_below, upload
from workers.store import Store


@contextlib.contextmanager
def staged(store: Store, identity: str, weights: Mapping[str, str]) -> Iterator[Path]:
    """A folder for everything around `weights` (file name -> key of its item), removed at the end
    unless it was renamed.
    """
    if isinstance(store.root, Url):
        with tempfile.TemporaryDirectory(prefix="svdllm-", ignore_cleanup_errors=True) as name:
            folder = Path(name) / "checkpoint"
            folder.mkdir()
            yield folder
        return
    folder = store.root / STAGING / f"{identity}.{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        store.place_files(weights, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
