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

from pipeline.cluster import result
from pipeline.run import Run
from schemas.location import Url
from schemas.manifest import Check
from workers.files import link
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
        fetch(store, weights, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(store: Store, weights: Mapping[str, str], folder: Path) -> None:
    """Put the weights into `folder`, where they are not there yet."""
    for name, key in weights.items():
        if not (folder / name).exists():
            with store.local(key) as path:
                link(path, folder / name)


def check(run: Run, folder: Path, weights: Mapping[str, str]) -> list[Check]:
    """What a worker finds in the checkpoint."""
    worker = run.pool.workers[0]
    root = run.store.root
    if isinstance(root, Path):
        found: list[Check] = result(worker.verify.remote(str(folder)), "verify", run.timeout)
        return found
    prefix = root / STAGING / uuid.uuid4().hex[:12]
    try:
        for path in folder.iterdir():
            upload(path, prefix / path.name)
        call = worker.verify_stored.remote(prefix, dict(weights))
        found = result(call, "verify", run.timeout)
    finally:
        remove_below(prefix)
    return found
