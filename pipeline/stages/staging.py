"""A checkpoint before it is published: a folder that is private to one attempt.

If the run directory is a folder, the staged folder is below it, with the weights as hard links to
their items. If it is a prefix in an object store, the small files are in a temporary folder of the
driver, beside the output if that is a folder, and the weights stay where they are until they are
needed.
"""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.cluster.pool import Task
from pipeline.stages.output import Output
from schemas.location import Location, Url
from workers.storage.keys import STAGING
from workers.storage.places import remove_below, upload


@contextlib.contextmanager
def staged(output: Output) -> Iterator[None]:
    """Set `staging` to a folder, which is removed at the end unless it was renamed."""
    store = output.run.store
    if isinstance(store.root, Url):
        place, at = output.place, None
        if isinstance(place, Path):  # where the weights, which may be large, are going
            at = place.parent
            at.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{place.name}.", suffix=".tmp", dir=at, ignore_cleanup_errors=True
        ) as name:
            output.staging = Path(name) / "checkpoint"
            output.staging.mkdir()
            yield
        return
    output.staging = store.root / STAGING / f"{output.identity}.{uuid.uuid4().hex[:12]}"
    output.staging.mkdir(parents=True)
    try:
        store.place_files(output.weights, output.staging)
        yield
    finally:
        shutil.rmtree(output.staging, ignore_errors=True)


@contextlib.contextmanager
def everywhere(output: Output, weights: bool) -> Iterator[Location]:
    """Give every node access to the staged checkpoint; for an object store, through a copy there.

    `weights` says whether the copy needs the weight files, too.
    """
    root, run = output.run.store.root, output.run
    if isinstance(root, Path):
        yield output.staging
        return
    prefix = root / STAGING / uuid.uuid4().hex[:12]
    try:
        for path in output.staging.iterdir():
            upload(path, prefix / path.name)
        if weights:
            run.pool.run(
                Task(f"stage {name}", "upload", (key, prefix / name), lambda _: None)
                for name, key in output.weights.items()
            )
            run.pool.quarantine.require()
        yield prefix
    finally:
        remove_below(prefix)
