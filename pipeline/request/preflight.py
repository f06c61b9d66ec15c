"""Checks that need no Ray: the base, the texts, the places to write to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.plan.budget import supposed
from pipeline.plan.footprint import Costs
from pipeline.plan.layouts import cut
from pipeline.plan.planner import require_disk
from pipeline.request.places import (
    is_inside,
    require_apart,
    require_beside,
    require_publishable,
    require_writable,
)
from pipeline.request.settle import pinned, settled
from pipeline.run_directory.journal import NAME as JOURNAL
from schemas.errors import STORAGE_FULL, ConfigError, DiskError, StorageError, TextError
from schemas.location import Location, locate
from schemas.model.spec import ModelSpec
from schemas.request.config import ROUNDS, RunConfig
from schemas.request.texts import shares_of
from schemas.run.context import SCORED_LENGTH, within_context
from schemas.run.ranks import require_ranks
from schemas.run.targets import select
from workers.checkpoint.fetching import resolve
from workers.checkpoint.names import SUCCESS
from workers.checkpoint.published import require_free
from workers.checkpoint.tokenizer_files import require_tokenizer
from workers.model.inspection import inspect, read_spec
from workers.model.kinds import TESTED
from workers.process.logs import now_about
from workers.storage.keys import OWNER, RUN_RECORD
from workers.storage.places import exists, files_below, url_of
from workers.text.documents import iter_documents, require_readable
from workers.text.rows import Document
from workers.text.sources import evaluation_source, is_on_hub, local_file


class Checked(NamedTuple):
    """A request whose inputs were looked at. `config` means the same in every process.

    `folder` and `spec` are of the base, known from its headers; `texts` has the documents of
    local calibration texts, by name, until they are taken out.
    """

    config: RunConfig
    folder: Path
    spec: ModelSpec
    texts: dict[str, list[Document]]


def check(config: RunConfig) -> Checked:
    """Check request, files, places and texts of a run before Ray is loaded.

    Raises what `look` does; a store's refusal is a ConfigError too, because nothing was computed.
    """
    try:
        return look(config)
    except StorageError as error:
        raise ConfigError(str(error)) from error


def look(config: RunConfig, scored: str = SCORED_LENGTH) -> Checked:
    """Look at request, files, places and texts of a run; `scored` is the option of the command that
    sets the length of the windows that are evaluated.

    Raises CheckpointError, TextError, ConfigError or StorageError, which name the problem and its
    remedy.
    """
    with _explained(config):
        config = settled(config)
        now_about(run=str(config.run_folder))
        _require_evaluation(config)
        texts = _local_texts(config)
        if isinstance(config.run_folder, Path):
            require_writable(config.run_folder)
        for output in config.outputs:
            if isinstance(output, Path):
                require_publishable(output)
        require_beside(config.output, config.run_folder)
        _require_run_dir(config)
        weights = url_of(config.model)
        if not weights and not Path(locate(config.model)).expanduser().exists():
            told = select(config, read_spec(config.model, config.revision, config.dequantize))
            _require_tested(config, told)  # before it is fetched
            require_ranks(within_context(config, told, scored), told)
        folder = resolve(config.model, config.revision, config.fetched)
        _check_outputs(config, weights or folder)
        spec = select(config, inspect(folder, weights, config.dequantize))
        config = within_context(config, spec, scored)
        _require_tested(config, spec)
        require_ranks(config, spec)
        require_tokenizer(folder)
        _require_disk(config, spec)
        return Checked(pinned(config, folder), folder, spec, texts)


def _require_evaluation(config: RunConfig) -> None:
    """Raises ConfigError if a budget is of a loss, and there is no text to measure it on."""
    if config.budget.measured and not evaluation_source(
        config.evaluation.text, config.calibration.text
    ):
        raise ConfigError(
            f"{config.budget.option}: what a ratio costs is measured on a text, and there is none; "
            "name one with --evaluate"
        )


def _require_tested(config: RunConfig, spec: ModelSpec) -> None:
    """Raises ConfigError if nobody knows whether this kind of model is compressed as it should."""
    if spec.model_type not in TESTED and not config.any_architecture:
        raise ConfigError(
            f"model_type {spec.model_type!r} is not among the kinds that are tested (`svdllm "
            f"architectures` lists them); see what would be cut with `svdllm architectures --model "
            f"{config.model}`, then add --any-architecture"
        )


def _local_texts(config: RunConfig) -> dict[str, list[Document]]:
    """Return the documents of local calibration texts, all of which are used; none if the run does
    not calibrate.

    Raises TextError if one of them or another text cannot be read, or is of no known kind.
    """
    asked, found = config.calibration.text, dict[str, list[Document]]()
    calibration = shares_of(asked).keys()
    others = {evaluation_source(config.evaluation.text, asked)}
    others |= shares_of(config.recovery.text).keys()
    if config.calibrates:
        local = (text for text in calibration if not is_on_hub(text))
        found = {text: list(iter_documents(text, "calibration")) for text in local}
    elif not config.recovery.text:
        for text in calibration:
            if (file := local_file(text)) is not None and not file.is_file():
                raise TextError(
                    f"{text}: gone; {config.adopt} was calibrated on it, and is trained on it if "
                    "no other text is named; name one with --recovery-text"
                )
        others |= calibration
    require_readable(filter(None, others - found.keys()))
    return found


@contextlib.contextmanager
def _explained(config: RunConfig) -> Iterator[None]:
    """Turn a system error into a ConfigError that says what to look at, or if a disk is full into a
    DiskError.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or config.model
        if error.errno in STORAGE_FULL:
            raise DiskError(f"{place}: {error.strerror}; make room there") from error
        raise ConfigError(
            f"{place}: cannot be used ({error.strerror or error}); check path and permissions"
        ) from error


def _require_run_dir(config: RunConfig) -> None:
    """Raises ConfigError if the folder holds anything but a run: a run clears its own leftovers."""
    root = config.run_folder
    if exists(root / RUN_RECORD):
        return
    if isinstance(root, Path) and root.is_file():
        raise ConfigError(f"run_dir {root}: is a file, not a folder; name another --run-dir")
    own = {OWNER, JOURNAL, config.fetched.name, *([ROUNDS] if config.rounds > 1 else [])}
    if found := {name.partition("/")[0] for name in files_below(root)} - own:
        raise ConfigError(
            f"run_dir {root}: holds {min(found)}, but no {RUN_RECORD} of a run; name a folder of "
            "its own with --run-dir"
        )


def _require_disk(config: RunConfig, spec: ModelSpec) -> None:
    """Raises ConfigError if the checkpoints still to be made cannot fit even with the least disk:
    one wave of one chain, counting what is already in the run directory.
    """
    left = [r for r in config.ratio if not exists(config.output_folder(r) / SUCCESS)]
    if config.ratio:
        config = config.model_copy(update={"ratio": tuple(left)})
    elif exists(config.output / SUCCESS):
        return
    config = supposed(config, spec)
    if not config.ratio or not isinstance(config.run_folder, Path):
        return
    least = Costs(config, spec, "float32", windows=0).disk([cut(spec.layers, 1)], replicas=1)
    require_disk(least, config)


def _check_outputs(config: RunConfig, base: Location) -> None:
    for what, read in (("model", base), ("checkpoint", config.adopt)):
        if read is None:
            continue
        for output in config.outputs:
            require_apart(output, read, what)
        if is_inside(config.run_folder, read):
            raise ConfigError(
                f"run_dir {config.run_folder} is inside the {what} {read}; name another --run-dir"
            )
    for output in config.outputs:
        require_free(output)
    if len(config.ratio) > 1 and exists(config.output / SUCCESS):
        raise ConfigError(
            f"output {config.output} is a checkpoint itself, so several ratios cannot go below it; "
            "name another folder"
        )
