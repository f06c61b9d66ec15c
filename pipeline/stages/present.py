"""Present: the report and the model card of a checkpoint, and the manifest of all its files."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from pipeline.metrics import show_perplexity
from pipeline.report.card import write_card
from pipeline.report.page import render_report
from pipeline.report.wording import optimism
from pipeline.request.flags import command_of
from pipeline.run import Run, shape
from pipeline.stages.assemble import write_manifest
from pipeline.stages.output import Output
from pipeline.versions import versions
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Compression
from schemas.result.output import MatrixResult
from schemas.result.report import ReportFacts, SpectrumSample, StageTime
from workers.checkpoint.names import EVALUATION, REPORT, REPORT_PAGE
from workers.storage.files import write_text
from workers.storage.keys import spectrum_key
from workers.storage.models import read_model
from workers.storage.places import at_once

_HEAD, _BODY = 24, 36  # points of a spectrum: spaced by logarithm, and evenly
_DIGITS = 4
_UNCHANGED = (
    "no step of its training made it better on held-out text, so the factors are as they were; "
    "train on more tokens"
)


def present(output: Output) -> None:
    """Write report and model card into the staged folder, and say what the evaluation found."""
    run, staging = output.run, output.staging
    compression, evaluation = output.compression, output.evaluation
    if evaluation is not None:
        show_perplexity(evaluation, output.ratio)
        write_text(staging / EVALUATION, evaluation.model_dump_json(indent=2) + "\n")
    if said := remark(compression, evaluation):
        run.progress.warn(f"ratio {output.ratio}: {said}")
    facts = gather_facts(output)
    write_text(staging / REPORT, facts.model_dump_json() + "\n")
    write_text(staging / REPORT_PAGE, render_report(compression, evaluation, facts))
    write_card(staging, run.inputs.folder, compression, evaluation)
    write_manifest(output)


def remark(compression: Compression, evaluation: EvaluationReport | None) -> str:
    """Say if training changed nothing, or if the loss is beyond the one that was predicted."""
    if compression.recovery is not None:
        return _UNCHANGED if compression.recovery.best == 0 else ""
    predicted, measured = compression.nats, None if evaluation is None else evaluation.nats
    said = optimism(predicted, measured)
    return said and f"{predicted:+.4f} nats a token were predicted, {measured:+.4f} measured{said}"


def gather_facts(output: Output) -> ReportFacts:
    """Gather what a run knows of its checkpoint beyond what the checkpoint's files say."""
    run, progress = output.run, output.run.progress
    return ReportFacts(
        output=output.identity,
        command=command_of(run.config),
        versions=versions(),
        started=progress.started.isoformat(timespec="seconds"),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        workers=len(run.workers),
        layout=shape(run.plan),
        stages=tuple(
            StageTime(
                name=name,
                seconds=round(seconds, 3),
                busy=tuple(round(share, 4) for share in progress.busy.get(name, ())),
            )
            for name, seconds in progress.seconds.items()
        ),
        warnings=tuple(progress.warnings),
        spectra=_spectra(output),
    )


def sample(name: str, eigenvalues: Sequence[float], rank: int | None) -> SpectrumSample:
    """Sample a spectrum at ranks dense at its head, then even, and on both sides of its cut."""
    size = len(eigenvalues)
    ranks = {round(size ** (step / _HEAD)) for step in range(_HEAD)}
    ranks |= {-(-size * step // _BODY) for step in range(1, _BODY + 1)}
    ranks |= set() if rank is None else {rank, rank + 1}
    chosen = tuple(at for at in sorted(ranks) if 1 <= at <= size)
    values = tuple(float(f"{eigenvalues[at - 1]:.{_DIGITS}g}") for at in chosen)
    return SpectrumSample(name=name, size=size, ranks=chosen, values=values)


def _spectra(output: Output) -> tuple[SpectrumSample, ...]:
    """Sample the spectra of all matrices, if there are any; of an adopted checkpoint, those of its
    report.
    """
    run, adopted = output.run, output.run.config.adopt
    if adopted is not None and not run.config.calibrates:
        before = read_model(adopted / REPORT, ReportFacts)
        return before.spectra if before else ()
    if not run.config.lowers_ranks:
        return ()
    cut = [row for name, row in output.matrices.items() if name not in output.given_up]
    return tuple(at_once(partial(_spectrum, run), cut))


def _spectrum(run: Run, matrix: MatrixResult) -> SpectrumSample:
    item = run.store.load(spectrum_key(run.ids, matrix.name))
    return sample(matrix.name, item.tensors["eigenvalues"].tolist(), matrix.cut_at)
