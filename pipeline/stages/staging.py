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
from schemas.run.identity import fingerprint
from workers.storage.keys import STAGING
from workers.storage.places import remove_below, upload


@contextlib.contextmanager
def staged(output: Output) -> Iterator[None]:
    """Set `staging` to a folder, which is removed at the end unless it was renamed."""
    store = output.run.store
    if isinstance(store.root, Url):
        with _beside(output.place, store.root) as folder:
            output.staging = folder / "checkpoint"
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
def _beside(place: Location, root: Url) -> Iterator[Path]:
    """Give a folder of a run in a store, beside an output that is a folder: its weights, which may
    be large, come there at the end.
    """
    if isinstance(place, Url):
        with tempfile.TemporaryDirectory(prefix="svdllm-", ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    folder = place.with_name(f"{place.name}.{fingerprint(str(root))}.staged.tmp")
    shutil.rmtree(folder, ignore_errors=True)  # what a driver that was killed has left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
