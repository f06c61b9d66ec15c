"""One night: look, compress what is new, judge it, publish it, tidy up."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.nightly import catalog
from pipeline.nightly.gate import reasons
from pipeline.nightly.ledger import Ledger, beyond, follow, latest_of, ledger_of
from pipeline.nightly.retention import place_of, remove_output, remove_run
from pipeline.nightly.rows import judged, row_of, slug
from pipeline.nightly.seen import Seen
from pipeline.nightly.sources import Checkpoint, Source, source_of
from pipeline.nightly.texts import text_sums
from pipeline.progress import Progress
from pipeline.report.wording import count
from pipeline.run_directory.ownership import Ownership, owned
from schemas.errors import (
    CheckpointError,
    ClusterError,
    CompressorError,
    ConfigError,
    DiskError,
    NodesError,
    OwnershipError,
    StorageError,
    TextError,
)
from schemas.location import absolute
from schemas.metrics import Outcome
from schemas.request.config import RunConfig
from schemas.request.nightly import CatalogRow, Event, NightlyConfig
from schemas.result.manifest import OutputResult, RunResult
from schemas.run.identity import fingerprint
from workers.checkpoint.published import read_manifest, read_output
from workers.storage.keys import OWNER
from workers.storage.places import exists, folders_in, read_bytes, write

LATEST = "latest.json"
Compress = Callable[[RunConfig], RunResult]
_OUTCOMES: dict[Event, Outcome] = {
    "published": "succeeded",
    "rejected": "rejected",
    "failed": "failed",
}
# Not the checkpoint's fault: the night ends, and the attempt does not count.
_ENDING = (TextError, StorageError, DiskError, OwnershipError, ClusterError, NodesError)


@dataclass
class Night:
    """A night's events; the incomplete and the quarantined checkpoints; how many wait."""

    rows: list[CatalogRow] = field(default_factory=list)
    incomplete: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    waiting: int = 0

    def of(self, event: Event) -> list[CatalogRow]:
        return [row for row in self.rows if row.event == event]


def nightly(config: NightlyConfig, compress: Compress | None) -> Night:
    """Run one night. `compress` is passed in, so that an idle night need not load
    `pipeline.compress`; without it, what it would be called for waits.

    Raises InputError before any work, OwnershipError if another night is at work, and any error
    that ends a compression without being the checkpoint's fault.
    """
    progress = Progress()
    texts = text_sums(config)
    places = {"output": absolute(config.output), "run_dir": absolute(config.runs)}
    config = config.model_copy(update=places)
    source = source_of(config.watch, config.revision)
    found = source.found()
    if not found:
        progress.warn(f"watch {config.watch}: no checkpoint is there; see whether it is mounted")
    with owned(config.output / OWNER, progress.note) as ownership:
        work = _Work(config, texts, source, compress, progress, ownership)
        work.require_folders(found)
        work.retry()
        work.point()
        work.tidy_up(found)  # first, so that a full disk has room
        work.go_through(found)
        work.tidy_up(found)
    return work.night


class _Work:
    """A night under way."""

    def __init__(
        self,
        config: NightlyConfig,
        texts: dict[str, str],
        source: Source,
        compress: Compress | None,
        progress: Progress,
        ownership: Ownership,
    ) -> None:
        self._config, self._compress = config, compress
        self._progress, self._ownership = progress, ownership
        self._method = fingerprint([config.method_settings, texts])
        self._seen = Seen(config.output, source)
        catalog.sweep(config.output)
        self._ledger: Ledger = ledger_of(catalog.read(config.output))
        self._tried: set[str] = set()
        self.night = Night()

    def require_folders(self, found: list[Checkpoint]) -> None:
        """Raises ConfigError if a ratio would have the folder of another one."""
        for key in map(self._known_key, found):
            if entry := self._ledger.get(key or ""):
                entry.require_folders(self._config.ratio)

    def retry(self) -> None:
        """Take the requested names out of quarantine. Raises ConfigError if one was never tried."""
        for name in self._config.retry:
            found = {key: entry for key, entry in self._ledger.items() if name in entry.names}
            if not found:
                raise ConfigError(
                    f"retry {name!r}: never tried, says the catalogue; `svdllm catalog` shows it"
                )
            for key, entry in found.items():
                row = row_of("retry", Checkpoint(name, entry.names[name], ""), key, entry.folder)
                self._write(row)

    def point(self) -> None:
        """Update `latest` from the catalogue, by one atomic write."""
        latest = latest_of(self._ledger)
        place = self._config.output / LATEST
        content = (latest.model_dump_json(indent=2) + "\n").encode()
        if latest.ratios and not (exists(place) and read_bytes(place) == content):
            self._ownership.require()
            write(place, content)

    def go_through(self, found: list[Checkpoint]) -> None:
        """Try the checkpoints in the requested order; those that failed before come last."""
        ordered = found if self._config.order == "oldest" else found[::-1]
        known = {checkpoint: self._known_key(checkpoint) for checkpoint in ordered}
        for checkpoint in sorted(ordered, key=lambda one: self._failed(known[one])):
            if len(self._tried) < self._config.max:
                self._look_at(checkpoint)
            elif self._is_open(known[checkpoint]):
                self.night.waiting += 1

    def tidy_up(self, found: list[Checkpoint]) -> None:
        """Apply retention, remove runs that are of no more use, and list what is in quarantine."""
        config = self._config
        for row in beyond(self._ledger, config.keep):
            place = place_of(config.output, row)
            self._ownership.require()
            if remove_output(place, row.output):
                self._write(row.model_copy(update={"event": "removed", "detail": ""}))
                continue
            stays = f"{place}: not the output that the catalogue names; it stays"
            if stays not in self._progress.warnings:  # a night tidies up twice
                self._progress.warn(stays)
        keys = {entry.folder: key for key, entry in self._ledger.items()}
        for folder in folders_in(config.runs):
            if folder in keys and self._is_over(keys[folder], found):
                self._ownership.require()
                remove_run(config.runs / folder, config.output / "checkpoints" / folder)
        self._seen.forget(found)
        for entry in self._ledger.values():
            if entry.quarantined:
                self.night.quarantined[entry.name] = entry.error

    def _is_over(self, key: str, found: list[Checkpoint]) -> bool:
        """Whether its run is of no more use: all is done, or it left a source that has others."""
        entry = self._ledger[key]
        done = entry.outcomes and not entry.left(self._config.ratio)
        named = [one for one in found if one.name in entry.names]
        gone = found and all(self._known_key(one) not in (None, key) for one in named)
        return bool(done or gone)

    def _known_key(self, checkpoint: Checkpoint) -> str | None:
        content = self._seen.known(checkpoint)
        return None if content is None else self._key(content)

    def _key(self, content: str) -> str:
        return fingerprint([content, self._method])

    def _failed(self, key: str | None) -> bool:
        return key in self._ledger and self._ledger[key].failed

    def _is_open(self, key: str | None) -> bool:
        entry = self._ledger.get(key or "")
        return entry is None or not (entry.quarantined or not entry.left(self._config.ratio))

    def _look_at(self, checkpoint: Checkpoint) -> None:
        try:
            content = self._seen.content(checkpoint)
        except CheckpointError as error:
            self.night.incomplete[checkpoint.name] = str(error)
            self._progress.note(f"{checkpoint.name}: not complete yet: {error}")
            return
        key = self._key(content)
        entry = self._ledger.get(key)
        if entry is not None and checkpoint.name not in entry.names:
            self._write(row_of("duplicate", checkpoint, key, entry.folder, entry.name))
            self.point()
        if key in self._tried or not self._is_open(key):
            return
        if entry is not None and entry.attempts >= self._config.attempts:
            self._quarantine(checkpoint, key)
            return
        self._tried.add(key)
        self._attempt(checkpoint, key, content)

    def _attempt(self, checkpoint: Checkpoint, key: str, content: str) -> None:
        if self._compress is None:
            self.night.waiting += 1
            return
        entry = self._ledger.get(key)
        folder = entry.folder if entry else f"{slug(checkpoint.name)}-{key}"
        ratios = entry.left(self._config.ratio) if entry else self._config.ratio
        request = self._config.request(checkpoint.model, checkpoint.revision, folder, ratios)
        self._write(row_of("started", checkpoint, key, folder))
        self._progress.note(f"{checkpoint.name}: compressing at {', '.join(map(str, ratios))}")
        start = time.monotonic()
        row = row_of("published", checkpoint, key, folder)
        outcome = [row_of("stopped", checkpoint, key, folder)]
        try:
            result = self._compress(request)
            self._require_unchanged(checkpoint, content, result)
            outcome = [self._judged(row, output) for output in result.outputs]
        except _ENDING:
            raise
        except Exception as error:
            # A trainer may remove a checkpoint meanwhile.
            foreseen = isinstance(error, (CompressorError, FileNotFoundError))
            why = str(error) if foreseen else f"{type(error).__name__}: {error}"
            self._progress.warn(f"{checkpoint.name}: failed: {why}")
            made = [] if self._seen.changed(checkpoint, content) else self._made(request, row)
            outcome = [*made, row_of("failed", checkpoint, key, folder, why)]
            if not foreseen:  # it ends the night, but no night tries it for ever
                raise
        finally:
            seconds = {"seconds": round(time.monotonic() - start, 1)}
            self._write(*(row.model_copy(update=seconds) for row in outcome))
        from pipeline.metrics import count_nightly  # loads ray, which compressing has loaded

        for row in outcome:
            count_nightly(_OUTCOMES[row.event])
        self.point()
        if self._failed(key) and self._ledger[key].attempts >= self._config.attempts:
            self._quarantine(checkpoint, key)

    def _require_unchanged(self, checkpoint: Checkpoint, content: str, result: RunResult) -> None:
        """Raises CheckpointError, and removes the outputs, if the checkpoint's files changed."""
        if not self._seen.changed(checkpoint, content):
            return
        self._ownership.require()
        for output in result.outputs:
            remove_output(output.path, read_manifest(output.path).output)
        raise CheckpointError(
            f"{checkpoint.model}: its files changed while they were compressed; what was made of "
            "them is removed, and they count as another checkpoint"
        )

    def _made(self, request: RunConfig, row: CatalogRow) -> list[CatalogRow]:
        """Return the rows of the outputs that are there although the request failed."""
        rows = []
        for ratio in request.ratio:
            with contextlib.suppress(CheckpointError):
                rows.append(self._judged(row, read_output(request.output_folder(ratio), ratio)))
        return rows

    def _judged(self, row: CatalogRow, output: OutputResult) -> CatalogRow:
        """Return the row of an output, published or rejected as the gate decides."""
        why = reasons(self._config.gate, output.evaluation) if self._config.gate else ()
        for reason in why:
            self._progress.warn(f"{row.name} at {output.ratio:g}: rejected: {reason}")
        return judged(row, output, why)

    def _quarantine(self, checkpoint: Checkpoint, key: str) -> None:
        entry = self._ledger[key]
        killed = f"{count(entry.attempts, 'attempt')}, the last one was killed"
        why = entry.error if entry.failed else killed
        self._write(row_of("quarantined", checkpoint, key, entry.folder, why))

    def _write(self, *rows: CatalogRow) -> None:
        """Write one event to the catalogue; this night must own it."""
        self._ownership.require()
        for row in catalog.append(self._config.output, list(rows)):
            follow(self._ledger, row)
            self.night.rows.append(row)
