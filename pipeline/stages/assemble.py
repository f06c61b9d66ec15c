"""Assemble: everything beside the weights that a load needs, and their description."""

import json
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.report.notes import FALLBACK, notes_of_matrices
from pipeline.report.wording import count
from pipeline.run import Run
from pipeline.stages.output import Output
from pipeline.stages.weight_files import Cut
from pipeline.versions import versions
from runtime.configuration_lowrank import FORMAT, SPLIT_FORMAT, guarded
from schemas.errors import RunError
from schemas.metrics import Metric
from schemas.request.config import RunConfig
from schemas.result.manifest import Compression, FileEntry, Manifest
from schemas.result.output import OutputFile
from schemas.run.identity import Identities
from workers.actors import metrics
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import family, unquantised
from workers.checkpoint.names import COMPRESSION, CONFIG, INDEX, MANIFEST, WEIGHTS
from workers.checkpoint.own_code import shipped
from workers.checkpoint.tokenizer_files import TOKENIZER_FILES
from workers.process.logs import about_matrices, log
from workers.recovery.job import recovery_of
from workers.storage.files import copy, file_sha256, write_json, write_text
from workers.storage.keys import moment_key
from workers.storage.moments import fallbacks_of

_TOKENIZER, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_COPIED = (
    *TOKENIZER_FILES,
    *("*processor*.json", "generation_config.json", "LICENSE*", "NOTICE*"),
)


def assemble(output: Output) -> None:
    """Set `compression`, and write the files beside the weights into the staged folder."""
    run, staging = output.run, output.staging
    with run.progress.stage("assemble", 1, "checkpoint") as stage:
        files = list(output.files.values())
        write_around(staging, run.inputs.folder, run.spec.split, output.matrices, files)
        done = output.compression = describe(output)
        write_text(staging / COMPRESSION, done.model_dump_json(indent=2) + "\n")
        write_manifest(output)
        stage.advance()
    _warn(done)


def write_around(
    folder: Path,
    base: Path,
    split: Mapping[str, tuple[int, ...]],
    results: Mapping[str, Cut],
    files: list[OutputFile],
) -> None:
    """Write everything beside the weights: config, index, code, tokenizer files byte for byte.

    `split` is how many rows each part has of the linear layers that are cut in parts.
    """
    copy_beside(folder, base)
    where = str(base / CONFIG)
    config = unquantised(read_config(base), where, dequantize=True)
    names = family(config, where)
    for name, content in shipped(names).items():
        (folder / name).write_bytes(content)
    config |= names.entries
    config["low_rank"] = {
        "format": SPLIT_FORMAT if split else FORMAT,
        **({"split": dict(split)} if split else {}),
        "matrices": {
            name: {"encoding": result.encoding, "rank": result.rank}
            for name, result in results.items()
        },
    }
    write_json(folder / CONFIG, guarded(config))
    write_index(folder, files)


def copy_beside(folder: Path, source: Path) -> None:
    """Copy tokenizer files, settings of generation and licences of a checkpoint, byte for byte, but
    for the names of code, which is not copied, and chat templates in a folder of their own: they go
    into the settings of the tokenizer.
    """
    templates = _named_templates(source)
    for name in beside(source):
        told = _settings(source / name) if name.endswith("_config.json") else {}
        ours = {key: value for key, value in told.items() if key != "auto_map"}
        if templates and name == _TOKENIZER:
            ours["chat_template"] = templates
        if ours != told:
            write_json(folder / name, ours)
        elif not (templates and name == _TEMPLATE):
            copy(source / name, folder / name)


def _named_templates(source: Path) -> list[dict[str, str]]:
    """Return the chat templates of a tokenizer that has several; none if it has one or none."""
    named = sorted((source / "additional_chat_templates").glob("*.jinja"))
    if not named or not (source / _TOKENIZER).is_file():
        return []
    default = [(path, "default") for path in [source / _TEMPLATE] if path.is_file()]
    return [
        {"name": name, "template": path.read_text(encoding="utf-8")}
        for path, name in (*default, *((path, path.stem) for path in named))
    ]


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:  # nobody reads it here, so it is copied as it is
        return {}
    return found if isinstance(found, dict) else {}


def beside(folder: Path) -> list[str]:
    """Return the names of these files of a checkpoint."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if any(fnmatch(path.name, pattern) for pattern in _COPIED)
        and path.is_file()
        and path.suffix != ".py"
    )


def write_index(folder: Path, files: list[OutputFile]) -> None:
    """Write which weight file holds each tensor, unless it is the one that is found without."""
    if [file.name for file in files] != [WEIGHTS]:
        weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
        index = {"metadata": {"total_size": size_of(files)[1]}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def size_of(files: Iterable[OutputFile]) -> tuple[int, int]:
    """Return parameters, without row orders, and bytes of weight files."""
    tensors = [tensor for file in files for tensor in file.tensors]
    values = [math.prod(one.shape) for one in tensors if not one.name.endswith(".order")]
    return sum(values), sum(tensor.nbytes for tensor in tensors)


def describe(output: Output) -> Compression:
    """Return compression.json, from what is planned to be on disk."""
    run, config, spec = output.run, output.run.config, output.run.spec
    results = tuple(output.matrices.values())
    after = sum(result.parameters for result in results)
    before = spec.parameters
    parameters, nbytes = size_of(output.files.values())
    nats = [result.nats for result in results]
    adopted = run.inputs.adopted
    return Compression(
        model=config.model,
        model_type=spec.model_type,
        ratio=output.ratio,
        keep=1 - output.ratio,
        removed=1 - after / spec.targeted,
        method={
            "preset": config.method,
            "truncation": config.truncation,
            "allocation": config.allocation.method,
            "factors": config.factors,
        },
        targeted_before=spec.targeted,
        targeted_after=after,
        parameters_before=before,
        parameters_after=parameters,
        bytes_before=sum(tensor.nbytes for tensor in spec.tensors),
        bytes_after=nbytes,
        nats=None if None in nats else sum(value or 0.0 for value in nats),
        rank_multiple=config.allocation.multiple,
        ratio_by=config.ratio_by,
        targets=config.targets,
        dequantize=config.dequantize,
        calibration=config.calibration,
        numerics=config.numerics,
        seed=config.seed,
        device=run.facts.device_name,
        dtype=run.facts.dtype,
        fallbacks=(*_calibration_fallbacks(run), *_no_room(run), *output.allocation.fallbacks),
        given_up=output.given_up,
        wide=run.spec.wide,
        recovery=recovery_of(run.store, output.identity),
        adopted=None if adopted is None else adopted.manifest.output,
        cut_before=() if adopted is None else _cut_before(config, adopted.compression),
        earlier=() if adopted is None else adopted.compression.recoveries,
        budget=output.budget,
        matrices=results,
    )


def _cut_before(config: RunConfig, adopted: Compression) -> tuple[float, ...]:
    """Return the ratios of earlier rounds, the last of which made what is adopted."""
    return (*adopted.cut_before, *([adopted.ratio] if config.calibrates else []))


def write_manifest(output: Output) -> None:
    """Write manifest.json of all files staged so far, and of the weight files."""
    run, weights = output.run, {}
    for name, key in output.weights.items():
        if (record := run.store.record(key)) is None:
            raise RunError(f"{run.store.root / key}: gone since it was committed; start again")
        weights[name] = FileEntry(sha256=record.sha256, bytes=record.bytes)
    list_files(output.staging, output.identity, run.ids, run.inputs.base_files, weights)


def list_files(
    folder: Path,
    identity: str,
    identities: Identities,
    base_files: dict[str, str],
    known: Mapping[str, FileEntry] = MappingProxyType({}),
) -> None:
    """Write manifest.json of the files of a folder, and of weight files that are `known` from their
    records, which need not be there.
    """
    found = {
        path.name: FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in folder.iterdir()
        if path.is_file() and path.name not in (*known, MANIFEST)
    }
    manifest = Manifest(
        output=identity,
        identities=identities,
        base_files=base_files,
        versions=versions(),
        files=dict(sorted({**found, **known}.items())),
    )
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _calibration_fallbacks(run: Run) -> list[str]:
    """Return how workers deviated from the plan while they computed the moments, each once."""
    there = run.there("moments")
    keys = {moment_key(run.ids, tap) for tap in run.taps}  # others left more there
    records = [record for key, record in there.items() if key in keys]
    return sorted({note for record in records for note in fallbacks_of(record.facts)})


def _no_room(run: Run) -> list[str]:
    """Return which neurons could not be removed, for want of memory."""
    wide = len(run.spec.wide)
    return [f"no room to order the neurons of {count(wide, 'MLP')}: they stay"] if wide else []


def _warn(compression: Compression) -> None:
    """Warn of every fallback and every thin statistic, each kind once with its count.

    They belong to this checkpoint, which keeps them itself, and not to the run.
    """
    for said in compression.fallbacks:
        log.warning("%s%s", FALLBACK, said)
    for note in notes_of_matrices(compression):
        with about_matrices(note.matrices):
            log.warning("%s in %d matrices: %s", note.kind, len(note.matrices), note.text)
    metrics.count(Metric.FALLBACKS, len(compression.fallbacks), kind="run")
    fallbacks = sum(len(matrix.fallbacks) for matrix in compression.matrices)
    metrics.count(Metric.FALLBACKS, fallbacks, kind="matrix")
