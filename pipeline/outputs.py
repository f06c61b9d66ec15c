"""Allocate, truncate, assemble, verify, publish: one checkpoint at one ratio."""

from collections import Counter
from pathlib import Path

from pipeline import assemble
from pipeline.card import write_card
from pipeline.cluster import result, wait_for
from pipeline.publish import finished, publish_output
from pipeline.run import Run
from schemas.allocation import AllocationResult
from schemas.errors import RunError, VerificationError
from schemas.identity import Record
from schemas.manifest import Check, Compression, FileEntry, Manifest, OutputResult
from schemas.output import MatrixResult, OutputFile
from workers.compression import factors_key, kept_dense
from workers.store import write_text
from workers.verify import require


def find_output(run: Run, ratio: float) -> OutputResult | None:
    """The checkpoint at one ratio, if it is published already.

    Raises ConfigError where its folder holds a checkpoint of another identity.
    """
    folder = run.config.output_folder(ratio)
    found = finished(folder, run.ids.output(run.config, ratio))
    if found is None:
        return None
    run.progress.note(f"{folder}: already there, nothing to do")
    return OutputResult(ratio=ratio, path=folder, compression=found, checks=())


def make_output(run: Run, ratio: float) -> OutputResult:
    """Allocate, truncate, assemble, verify and publish the checkpoint at one ratio."""
    folder = run.config.output_folder(ratio)
    identity = run.ids.output(run.config, ratio)
    allocation = _allocate(run, ratio)
    results = _truncate(run, allocation)
    staging, compression = _assemble(run, identity, allocation, results)
    checks = _verify(run, staging, identity)
    publish_output(staging, folder)
    run.progress.note(f"{folder}: written and verified")
    return OutputResult(ratio=ratio, path=folder, compression=compression, checks=tuple(checks))


def _allocate(run: Run, ratio: float) -> AllocationResult:
    with run.progress.stage("allocate", 1, "model") as stage:
        call = run.allocator.gather.remote(run.spec.matrices, run.ids.bases)
        result(call, "gather losses", run.timeout)
        call = run.allocator.allocate.remote(ratio)
        allocation: AllocationResult = result(call, f"allocate {ratio}", run.timeout)
        stage.advance()
    share = allocation.parameters / allocation.dense_parameters
    nats = "" if allocation.nats is None else f", predicted +{allocation.nats:.4f} nats a token"
    run.progress.note(
        f"ratio {ratio}: {allocation.parameters:,} of {allocation.dense_parameters:,} targeted "
        f"parameters stay ({share:.2%}, budget {allocation.budget:,}){nats}"
    )
    return allocation


def _truncate(run: Run, allocation: AllocationResult) -> dict[str, MatrixResult]:
    """The row of every matrix, its factors committed, in the order of the model."""
    ranks = allocation.ranks
    low_rank = [matrix for matrix in run.spec.matrices if ranks[matrix.name] is not None]
    keys = _keys(run, allocation)
    pending = [matrix for matrix in low_rank if not run.store.record(keys[matrix.name])]
    with run.progress.stage("truncate", len(pending), "matrices") as stage:
        calls = {
            run.owner(matrix).truncate.remote(matrix, ranks[matrix.name]): f"cut {matrix.name}"
            for matrix in pending
        }
        wait_for(calls, run.timeout, lambda _: stage.advance())
    return {
        matrix.name: kept_dense(run.store, run.ids.bases, matrix)
        if ranks[matrix.name] is None
        else MatrixResult.model_validate(_committed(run, keys[matrix.name]).facts)
        for matrix in run.spec.matrices
    }


def _assemble(
    run: Run, identity: str, allocation: AllocationResult, results: dict[str, MatrixResult]
) -> tuple[Path, Compression]:
    """All files of the checkpoint in the run directory, weights written by the workers."""
    prefix = _prefix(identity)
    keys = _keys(run, allocation)
    files = assemble.plan_files(assemble.plan_tensors(run.spec, results, keys))
    pending = [file for file in files if not run.store.record(f"{prefix}/{file.name}")]
    with run.progress.stage("assemble", len(pending), "files") as stage:
        calls = {
            run.workers[i % len(run.workers)].write.remote(f"{prefix}/{file.name}", file): file.name
            for i, file in enumerate(pending)
        }
        wait_for(calls, run.timeout, lambda _: stage.advance())
    staging = run.store.path(prefix)
    for left in staging.iterdir():  # what a killed run left beside the weights
        if left.name not in {file.name for file in files}:
            left.unlink()
    assemble.write_around(staging, run.inputs.folder, run.spec, results, files)
    compression = assemble.describe(
        run.config,
        run.spec,
        allocation.ratio,
        results,
        files,
        facts={
            "device": run.facts.device_name,
            "dtype": run.facts.dtype,
            "fallbacks": allocation.fallbacks,
        },
    )
    text = compression.model_dump_json(indent=2) + "\n"
    write_text(staging / "compression.json", text)
    write_card(staging, run.inputs.folder, run.config, compression)
    _write_manifest(run, identity, staging, files)
    _warn(run, compression)
    return staging, compression


def _write_manifest(run: Run, identity: str, staging: Path, files: list[OutputFile]) -> None:
    weights = {}
    for file in files:
        record = _committed(run, f"{_prefix(identity)}/{file.name}")
        weights[file.name] = FileEntry(sha256=record.sha256, bytes=record.bytes)
    manifest = Manifest(
        output=identity,
        identities=run.ids,
        base_files=run.inputs.base_files,
        versions=assemble.versions(),
        files=assemble.checksums(staging, weights),
    )
    text = manifest.model_dump_json(indent=2) + "\n"
    write_text(staging / "manifest.json", text)


def _verify(run: Run, staging: Path, identity: str) -> list[Check]:
    with run.progress.stage("verify", 1, "checkpoint") as stage:
        call = run.workers[0].verify.remote(str(staging))
        checks: list[Check] = result(call, "verify", run.timeout)
        stage.advance()
    try:
        require(checks, staging)
    except VerificationError:
        run.store.discard(_prefix(identity))  # whatever was wrong is written anew
        raise
    return checks


def _prefix(identity: str) -> str:
    return f"outputs/{identity}"


def _keys(run: Run, allocation: AllocationResult) -> dict[str, str]:
    return {
        name: factors_key(run.ids.factors, name, rank)
        for name, rank in allocation.ranks.items()
        if rank is not None
    }


def _committed(run: Run, key: str) -> Record:
    record = run.store.record(key)
    if record is None:
        raise RunError(f"{run.store.path(key)}: gone since it was committed; start again")
    return record


def _warn(run: Run, compression: Compression) -> None:
    """Every fallback and every thin statistic, each kind once with its count."""
    kinds = Counter(note for matrix in compression.matrices for note in matrix.fallbacks)
    thin = Counter(note for matrix in compression.matrices for note in matrix.remarks)
    for note in compression.fallbacks:
        run.progress.warn(f"fallback: {note}")
    for note, count in kinds.items():
        run.progress.warn(f"fallback in {count} matrices: {note}")
    for note, count in thin.items():
        run.progress.warn(f"thin statistics in {count} matrices: {note}")
