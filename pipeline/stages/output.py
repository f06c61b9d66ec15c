"""Allocate, truncate, assemble, verify, publish: one checkpoint at one ratio."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.cluster.calls import result
from pipeline.cluster.pool import Task
from pipeline.metrics import show_perplexity
from pipeline.report.card import write_card
from pipeline.report.wording import optimism
from pipeline.run import Run
from pipeline.stages import assemble
from pipeline.stages.compare import NAME as EVALUATION
from pipeline.stages.compare import compare, published
from pipeline.stages.present import write_report
from pipeline.stages.publish import publish_output, publish_to_store
from pipeline.stages.staging import staged
from pipeline.stages.truncate import output_prefix, write_weights
from pipeline.stages.verify import check
from schemas.errors import ConfigError, RunError, VerificationError
from schemas.location import Location, Url
from schemas.metrics import Metric
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Check, Compression, FileEntry, Manifest, OutputResult
from schemas.result.output import MatrixResult, OutputFile
from schemas.run.identity import Record
from schemas.run.ranks import AllocationResult
from workers.actors.metrics import count
from workers.checkpoint.published import SUCCESS, finished
from workers.checkpoint.verify import require, samples_of
from workers.process.logs import about_matrices
from workers.storage.files import write_text
from workers.storage.moments import fallbacks_of
from workers.storage.places import exists, read_bytes

_FASTER = "already there, from another driver that was faster with the same"


def find_output(run: Run, ratio: float) -> OutputResult | None:
    """The checkpoint at one ratio, if it is published already.

    Raises ConfigError where its folder holds a checkpoint of another identity.
    """
    folder = run.config.output_folder(ratio)
    given_up = _given_up(folder) if exists(folder / SUCCESS) else {}
    if given_up and run.config.on_failure == "fail":
        raise ConfigError(
            f"output {folder}: {', '.join(given_up)} could not be cut and are dense there; "
            "ask for --on-failure keep_dense to leave it so, or remove it to try again"
        )
    found = finished(folder, run.ids.output(run.config, ratio, given_up))
    if found is None:
        return None
    run.progress.note(f"{folder}: already there, nothing to do")
    return OutputResult(
        ratio=ratio, path=folder, compression=found, checks=(), evaluation=published(folder)
    )


def _given_up(folder: Location) -> dict[str, str]:
    """What had to stay dense in a published checkpoint, as its compression.json says."""
    found: dict[str, str] = json.loads(read_bytes(folder / "compression.json")).get("given_up", {})
    return found


def make_output(run: Run, ratio: float) -> OutputResult:
    """Allocate, truncate, assemble, verify and publish the checkpoint at one ratio.

    Raises QuarantineError where an item failed again and again, unless its matrix may stay dense:
    then ranks are shared out once more among the others.
    """
    folder = run.config.output_folder(ratio)
    while True:
        given_up = run.given_up
        identity = run.ids.output(run.config, ratio, given_up)
        allocation = _allocate(run, ratio)
        results, files = write_weights(run, identity, allocation)
        run.pool.quarantine.require()
        if run.given_up == given_up:
            break
        run.discard(output_prefix(identity))
    weights = {file.name: f"{output_prefix(identity)}/{file.name}" for file in files}
    with staged(run.store, identity, weights) as staging:
        compression = _assemble(run, identity, staging, allocation, results, files)
        checks = _verify(run, identity, staging, weights)
        evaluation = compare(run, identity, staging, weights, folder, samples_of(checks))
        _present(run, identity, staging, files, compression, evaluation)
        written = _publish(run, identity, staging, weights, folder)
    run.store.discard(output_prefix(identity))
    run.progress.note(f"{folder}: {'written and verified' if written else _FASTER}")
    return OutputResult(
        ratio=ratio,
        path=folder,
        compression=compression,
        checks=tuple(checks),
        evaluation=evaluation,
    )


def _allocate(run: Run, ratio: float) -> AllocationResult:
    with run.progress.stage("allocate", 1, "model") as stage:
        call = run.allocator.gather.remote(run.spec.matrices, run.ids.bases, set(run.given_up))
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


def _assemble(
    run: Run,
    identity: str,
    staging: Path,
    allocation: AllocationResult,
    results: dict[str, MatrixResult],
    files: list[OutputFile],
) -> Compression:
    """Everything around the weights that a load needs, in `staging`."""
    with run.progress.stage("assemble", 1, "checkpoint") as stage:
        compression = _write_around(run, identity, staging, allocation, results, files)
        stage.advance()
    _warn(run, compression)
    return compression


def _write_around(
    run: Run,
    identity: str,
    staging: Path,
    allocation: AllocationResult,
    results: dict[str, MatrixResult],
    files: list[OutputFile],
) -> Compression:
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
            "fallbacks": (*_calibration_fallbacks(run), *allocation.fallbacks),
            "given_up": run.given_up,
        },
    )
    text = compression.model_dump_json(indent=2) + "\n"
    write_text(staging / "compression.json", text)
    _write_manifest(run, identity, staging, files)
    return compression


def _present(
    run: Run,
    identity: str,
    staging: Path,
    files: list[OutputFile],
    compression: Compression,
    evaluation: EvaluationReport | None,
) -> None:
    """What is said of the checkpoint to its readers, and the manifest of it all."""
    if evaluation is not None:
        show_perplexity(evaluation, compression.ratio)
        if said := optimism(compression.nats, evaluation.nats):
            run.progress.warn(
                f"ratio {compression.ratio}: +{compression.nats:.4f} nats a token were predicted, "
                f"and {evaluation.nats:+.4f} measured{said}"
            )
        write_text(staging / EVALUATION, evaluation.model_dump_json(indent=2) + "\n")
    write_report(staging, run, compression, evaluation)
    write_card(staging, run.inputs.folder, run.config, compression, evaluation)
    _write_manifest(run, identity, staging, files)


def _calibration_fallbacks(run: Run) -> list[str]:
    """What workers did otherwise than planned while they computed the moments, each once."""
    records = run.there("moments").values()
    return sorted({note for record in records for note in fallbacks_of(record.facts)})


def _write_manifest(run: Run, identity: str, staging: Path, files: list[OutputFile]) -> None:
    weights = {}
    for file in files:
        record = _committed(run, f"{output_prefix(identity)}/{file.name}")
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


def _verify(run: Run, identity: str, staging: Path, weights: dict[str, str]) -> list[Check]:
    with run.progress.stage("verify", 1, "checkpoint") as stage:
        checks = check(run, staging, weights)
        stage.advance()
    for one in checks:
        if one.passed is None:
            run.progress.warn(
                f"verify: {one.name}: not judged ({one.detail}); it is published all the same, "
                "and `svdllm verify` of the checkpoint tries it again"
            )
    try:
        require(checks, staging)
    except VerificationError:
        _forget(run, identity, checks, weights)
        raise
    return checks


def _forget(run: Run, identity: str, checks: list[Check], weights: Mapping[str, str]) -> None:
    """What was wrong, so that it is written anew: its files, or all of them where none is named."""
    wrong = [check.files for check in checks if check.passed is False]
    if not all(wrong):
        run.discard(output_prefix(identity))
        return
    run.ownership.require()
    for name in {name for files in wrong for name in files} & weights.keys():
        run.store.forget(weights[name])


def _publish(
    run: Run, identity: str, staging: Path, weights: dict[str, str], place: Path | Url
) -> bool:
    """To a store, weights are sent by all workers; False where another driver was faster.

    Raises OwnershipError where this one has no right to it.
    """
    run.ownership.require()
    if isinstance(place, Path):
        run.store.place_files(weights, staging)
        return publish_output(staging, place, identity)

    def send(names: set[str]) -> None:
        run.grow()
        run.pool.run(
            Task(
                f"upload {name}",
                "upload",
                (weights[name], place / name),
                lambda _: stage.advance(),
            )
            for name in sorted(names)
        )
        run.pool.quarantine.require()

    with run.progress.stage("upload", len(weights), "files") as stage:
        publish_to_store(staging, place, identity, set(weights), send)
    return True


def _committed(run: Run, key: str) -> Record:
    record = run.store.record(key)
    if record is None:
        raise RunError(f"{run.store.root / key}: gone since it was committed; start again")
    return record


def _warn(run: Run, compression: Compression) -> None:
    """Every fallback and every thin statistic, each kind once with its count."""
    for note in compression.fallbacks:
        run.progress.warn(f"fallback: {note}")
    matrices = compression.matrices
    fallbacks = [(matrix.name, note) for matrix in matrices for note in matrix.fallbacks]
    _warn_of_matrices(run, "fallback", fallbacks)
    count(Metric.FALLBACKS, len(compression.fallbacks), kind="run")
    count(Metric.FALLBACKS, len(fallbacks), kind="matrix")
    remarks = [(matrix.name, note) for matrix in matrices for note in matrix.remarks]
    _warn_of_matrices(run, "thin statistics", remarks)


def _warn_of_matrices(run: Run, what: str, notes: list[tuple[str, str]]) -> None:
    """`notes` are pairs of a matrix and what is to be said of it."""
    for kind, times in Counter(note for _, note in notes).items():
        with about_matrices([name for name, note in notes if note == kind]):
            run.progress.warn(f"{what} in {times} matrices: {kind}")
