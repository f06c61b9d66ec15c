"""Publish: a verified folder becomes the checkpoint.

On a file system this is one rename, onto nothing or an empty folder. In an object store it goes
file by file, below a claim that runs of other identities respect. Every file is created only if it
is missing, none is ever replaced, and the manifest describes the stored files: so however many
drivers of one identity publish at once, or late, the result is one whole checkpoint. `_SUCCESS`
comes last; without it nothing counts.
"""

import errno
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.cluster.pool import Task
from pipeline.progress import Stage
from pipeline.run import Run
from pipeline.stages.output import Output
from schemas.errors import ConfigError, StorageFullError
from schemas.location import Url
from schemas.result.manifest import FileEntry, Manifest, OutputResult
from schemas.run.identity import fingerprint
from workers.checkpoint.names import CLAIM, MANIFEST, SUCCESS
from workers.checkpoint.published import is_published, read_output, require_free
from workers.checkpoint.stored import stored_sha256
from workers.process.failures import failure
from workers.storage import files
from workers.storage.places import create, exists, read_bytes, remove, size_of, transfer

_FASTER = "already there, from another driver that was faster with the same"


def find_published(run: Run, ratio: float) -> OutputResult | None:
    """Return the checkpoint at one ratio if it is already published.

    Raises ConfigError if its folder holds a checkpoint of another identity, CheckpointError if the
    description of that is absent or damaged.
    """
    folder = run.config.output_folder(ratio)
    if not exists(folder / SUCCESS):
        return None
    found = read_output(folder, ratio)
    given_up, wide = found.compression.given_up, found.compression.wide
    if given_up and run.config.on_failure == "fail":
        raise ConfigError(
            f"output {folder}: {', '.join(given_up)} could not be cut and are dense there; "
            "ask for --on-failure keep_dense to leave it so, or remove it to try again"
        )
    if not is_published(folder, run.ids.output(run.config, ratio, given_up, run.spec.split, wide)):
        return None  # it was removed meanwhile
    run.progress.note(f"{folder}: already there, nothing to do")
    return found


def publish(output: Output) -> None:
    """Put the staged checkpoint in its place; for a store, all workers upload its weight files.

    Raises OwnershipError if the run has another owner by now.
    """
    run, place = output.run, output.place
    run.ownership.require()
    written = True
    if isinstance(place, Path):
        run.store.place_files(output.weights, output.staging)
        written = publish_output(output.staging, place, output.identity, str(run.store.root))
    else:
        weights = set(output.weights)
        with run.progress.stage("upload", len(weights), "files") as stage:
            send = partial(_send, output, place, stage)
            publish_to_store(output.staging, place, output.identity, weights, send)
    output.discard()
    run.progress.note(f"{place}: {'written and verified' if written else _FASTER}")


def _send(output: Output, place: Url, stage: Stage, names: set[str]) -> None:
    run = output.run
    run.grow()
    run.pool.run(
        Task(
            f"upload {name}",
            "upload",
            (output.weights[name], place / name),
            lambda _: stage.advance(),
        )
        for name in sorted(names)
    )
    run.pool.quarantine.require()


def publish_output(staging: Path, folder: Path, identity: str, owner: str = "") -> bool:
    """Mark `staging` as a success and rename it to `folder`, which must be empty or absent. On
    another file system it is copied first, to a place that belongs to `owner`, a run directory.

    If another driver was faster, its checkpoint stays, and this returns False. Raises ConfigError
    if that checkpoint is of another identity, or if anything else is in `folder` by now.
    """
    files.write_text(staging / SUCCESS, "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _rename(staging, folder, owner)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not is_published(folder, identity):
            require_free(folder)
            raise
        return False
    return True


def _rename(staging: Path, folder: Path, owner: str) -> None:
    """Rename in one step, even across file systems. Raises StorageFullError if the target is."""
    try:
        files.publish(staging, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = folder.with_name(f"{folder.name}.{fingerprint(owner)}.tmp")
        shutil.rmtree(beside, ignore_errors=True)  # the copy of a run that was killed
        try:
            files.copy_folder(staging, beside)
            files.publish(beside, folder)
        except OSError as failed:
            if failure(failed) != "storage full":
                raise
            raise StorageFullError(
                f"output {folder}: {failed.strerror}; the checkpoint needs "
                f"{sum(path.stat().st_size for path in staging.iterdir()):,} bytes there; make "
                "room, then start the same command again"
            ) from failed
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def publish_to_store(
    staging: Path, url: Url, identity: str, weights: set[str], send: Callable[[set[str]], None]
) -> None:
    """Copy the files of `staging` that are missing below `url`; `send` does so for `weights`.

    Continues what a run of the same identity and weights, stopped or at work, has left here: on a
    GPU, weights that were computed again may differ. Raises ConfigError if another run has claimed
    the place or has published there.
    """
    manifest = Manifest.model_validate_json((staging / MANIFEST).read_bytes())
    sums = {name: manifest.files[name].sha256 for name in weights}
    claim = f"{identity} {fingerprint(sums)}"
    if not create(url / CLAIM, claim.encode()):
        owner = read_bytes(url / CLAIM).decode()
        if owner != claim:
            raise ConfigError(
                f"output {url}: another run ({owner}) is publishing there, or was stopped while it "
                "did; continue that one, or remove what is there, or name another place"
            )
    if not is_published(url, identity):
        send(weights)
        small = {path.name for path in staging.iterdir()} - weights - {MANIFEST}
        for name in sorted(small):
            transfer(staging / name, url / name)
        stored = stored_sha256({name: url / name for name in small})
        entries = manifest.files | {
            n: FileEntry(sha256=s, bytes=size_of(url / n)) for n, s in stored.items()
        }
        text = manifest.model_copy(update={"files": entries}).model_dump_json(indent=2) + "\n"
        create(url / MANIFEST, text.encode())
        if not create(url / SUCCESS, b""):
            is_published(url, identity)  # returns if a driver of this run published, else raises
    remove(url / CLAIM)
