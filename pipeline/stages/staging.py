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

from schemas.location import Url
from workers.storage.keys import STAGING
from workers.storage.store import Store


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
