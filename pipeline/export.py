"""`svdllm export`: a finished checkpoint in another form, from its own files alone."""

import contextlib
import math
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipeline.report.card import write_card, write_dense_card
from pipeline.request.adopt import Adopted, read_finished, require_files
from pipeline.request.places import require_apart, require_publishable
from pipeline.run_directory.ownership import owned
from pipeline.stages import assemble
from schemas.errors import ConfigError
from schemas.location import full_path
from schemas.model.spec import PRUNED, DecoderSpec, Encoding, Factors
from schemas.request.export import ExportConfig
from schemas.result.export import Exported
from schemas.result.manifest import Compression
from schemas.result.output import MatrixResult, OutputFile
from schemas.run.identity import fingerprint
from schemas.run.targets import matches
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import LOW_RANK, stock
from workers.checkpoint.fetching import resolve
from workers.checkpoint.names import COMPRESSION, CONFIG, SUCCESS
from workers.checkpoint.tensors import TensorReader
from workers.model.inspection import inspect, inspect_decoder
from workers.process.failures import storage_explained
from workers.process.logs import log
from workers.reencoding import (
    Cut,
    as_factors,
    as_rotated,
    cuts_of,
    merged,
    narrowed,
    with_bias,
    write_weights,
)
from workers.storage.files import publish, write_json, write_text
from workers.storage.keys import OWNER
from workers.truncation.encoding import Stored

Store = Callable[[Cut, dict[str, Tensor]], Stored | None]
"""Returns how a matrix with these tensors is stored anew, or None if it stays as it is."""


class _Source(NamedTuple):
    """The checkpoint that is exported."""

    folder: Path
    told: Adopted
    spec: DecoderSpec
    reader: TensorReader
    cuts: list[Cut]


def export(config: ExportConfig) -> Exported:
    """Write a finished checkpoint in another form; it appears complete or not at all.

    Raises CheckpointError if it is none or is damaged, ConfigError if the output is taken.
    """
    if config.ratio:
        raise ConfigError("ratio: a run has others; call compress with its run_dir")
    output = full_path(config.output)
    source = _opened(resolve(config.checkpoint, None))
    require_apart(output, source.folder, "checkpoint")
    with staged_beside(output) as staging:
        if config.factors is None:
            exported = _dense(source, staging)
        else:
            store = partial(as_factors, factors=config.factors)
            exported = _refactored(source, staging, config.factors, store)
        publish(staging, output)
    return exported.model_copy(update={"path": output})


@contextlib.contextmanager
def staged_beside(output: Path) -> Iterator[Path]:
    """Give a folder beside the output, as `temporary_beside`, after removing those that commands
    have left there when they were killed.

    Raises ConfigError if the output exists or nothing can be written there, OwnershipError if
    another command is at work for this output.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output {output} exists; name another folder, or empty it")
    require_publishable(output)
    with owned(output.with_name(f"{output.name}.tmp") / OWNER, log.info):
        left = re.compile(rf"{re.escape(output.name)}\.[0-9a-f]{{12}}\.tmp")
        for path in [path for path in output.parent.iterdir() if left.fullmatch(path.name)]:
            shutil.rmtree(path)
            log.warning("%s: removed; a command that was killed had left it", path)
        with (
            temporary_beside(output) as staging,
            storage_explained(f"writing {output.name}", output.parent),
        ):
            yield staging


@contextlib.contextmanager
def temporary_beside(output: Path) -> Iterator[Path]:
    """Give a folder beside the output, which is removed at the end unless it was renamed."""
    staging = output.with_name(f"{output.name}.{uuid.uuid4().hex[:12]}.tmp")
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def rotate(folder: Path, output: Path, seed: int, stay: Collection[str]) -> dict[Encoding, int]:
    """Write a finished checkpoint in the form that rounding harms least (`as_rotated`) into an
    empty folder; the head and matrices that a pattern of `stay` names are as they were. Return how
    many were stored anew, by what they are now. Raises CheckpointError if it is none or is damaged.
    """
    source, found = _opened(folder), Counter[Encoding]()
    layers = source.spec.path.rpartition(".")[2] + ".*"

    def store(cut: Cut, tensors: dict[str, Tensor]) -> Stored | None:
        stays = any(matches(cut.name, pattern) for pattern in stay)
        inside = matches(cut.name, layers) and not stays
        stored = as_rotated(cut, tensors, seed) if inside else None
        if stored is not None:
            found[stored.encoding] += 1
        return stored

    _refactored(source, output, "plain", store)
    return dict(found)


def _opened(folder: Path) -> _Source:
    told = read_finished(folder)
    require_files(folder, told.manifest)
    spec = inspect_decoder(folder)
    return _Source(folder, told, spec, TensorReader(folder, spec), cuts_of(folder, spec))


def _refactored(source: _Source, staging: Path, factors: Factors, store: Store) -> Exported:
    compression = source.told.compression
    rows = {row.name: row for row in compression.matrices}
    bound = compression.numerics.pivot_bound
    kept: dict[str, str] = {}

    def restate(cuts: list[Cut]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for cut in cuts:
            tensors = cut.read(source.reader)
            stored = store(cut, tensors)
            if stored is not None and (stored.interpolation_max or 0.0) > bound:
                kept[cut.name] = f"max|T| = {stored.interpolation_max:.3g} > {bound:g}"
                stored = None
            if stored is not None:
                tensors = with_bias(cut, stored, tensors)
                rows[cut.name] = _row(rows[cut.name], stored)
            found |= {f"{cut.owner}.{tail}": tensor for tail, tensor in tensors.items()}
        return found

    files = write_weights(staging, source.spec, source.reader, source.cuts, restate)
    split = read_config(source.folder)[LOW_RANK].get("split", {})
    assemble.write_around(staging, source.folder, split, rows, files)
    inspect_decoder(staging)  # names and shapes are what its configuration says
    told = _described(source, rows, files, factors)
    write_text(staging / COMPRESSION, told.model_dump_json(indent=2) + "\n")
    write_card(staging, source.folder, told)
    old = source.told.manifest
    identity = fingerprint([old.output, "exported", factors])
    assemble.list_files(staging, identity, old.identities, old.base_files)
    (staging / SUCCESS).touch()
    return Exported(
        path=staging, parameters=told.parameters_after, nbytes=told.bytes_after, kept=kept
    )


def _row(row: MatrixResult, stored: Stored) -> MatrixResult:
    values = [tensor for tail, tensor in stored.tensors.items() if tail != "order"]
    return row.model_copy(
        update={
            **stored.matrix._asdict(),
            "parameters": sum(tensor.numel() for tensor in values),
            "rounding": math.hypot(row.rounding, stored.rounding),
            "interpolation_max": stored.interpolation_max,
        }
    )


def _described(
    source: _Source, rows: Mapping[str, MatrixResult], files: Sequence[OutputFile], factors: Factors
) -> Compression:
    told = source.told.compression
    after = sum(row.parameters for row in rows.values())
    parameters, nbytes = assemble.size_of(files)
    return told.model_copy(
        update={
            "method": told.method | {"factors": factors},
            "removed": 1 - after / told.targeted_before,
            "targeted_after": after,
            "parameters_after": parameters,
            "bytes_after": nbytes,
            "exported": source.told.manifest.output,
            "matrices": tuple(rows.values()),
        }
    )


def _dense(source: _Source, staging: Path) -> Exported:
    config = stock(read_config(source.folder))
    smaller = narrowed(config, str(source.folder / CONFIG), source.cuts)
    pruned = any(cut.module.encoding in PRUNED for cut in source.cuts)

    def restate(cuts: list[Cut]) -> dict[str, Tensor]:
        tensors = [cut.read(source.reader) for cut in cuts]
        found = merged(cuts, tensors, narrow=smaller is not None)
        return {f"{cuts[0].linear}.{leaf}": tensor for leaf, tensor in found.items()}

    files = write_weights(staging, source.spec, source.reader, source.cuts, restate)
    assemble.copy_beside(staging, source.folder)
    write_json(staging / CONFIG, smaller or config)
    assemble.write_index(staging, files)
    inspect(staging)  # names and shapes are what its configuration says
    parameters, nbytes = assemble.size_of(files)
    narrow = (smaller is not None) if pruned else None
    exported = Exported(path=staging, parameters=parameters, nbytes=nbytes, narrow=narrow)
    write_dense_card(exported, source.folder, source.told.compression)
    return exported
