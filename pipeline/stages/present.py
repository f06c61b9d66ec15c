"""report.json and report.html of a run: what it knows that its checkpoint does not say yet."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from pipeline.report.page import FACTS, PAGE, render_report
from pipeline.request.flags import command_of
from pipeline.run import Run, shape
from pipeline.stages.assemble import versions
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Compression
from schemas.result.output import MatrixResult
from schemas.result.report import ReportFacts, SpectrumSample, StageTime
from workers.storage.files import write_text
from workers.storage.keys import spectrum_key
from workers.storage.places import IN_FLIGHT

_HEAD, _BODY = 24, 36  # points of a spectrum, by logarithm and evenly
_DIGITS = 4


def write_report(
    folder: Path, run: Run, compression: Compression, evaluation: EvaluationReport | None
) -> None:
    """report.json and report.html of the checkpoint that is put together in `folder`."""
    output = run.ids.output(run.config, compression.ratio, compression.given_up)
    facts = gather_facts(run, compression, output)
    write_text(folder / FACTS, facts.model_dump_json() + "\n")
    write_text(folder / PAGE, render_report(compression, evaluation, facts))


def gather_facts(run: Run, compression: Compression, output: str) -> ReportFacts:
    """Facts of a run about its checkpoint of identity `output`."""
    progress = run.progress
    cut = [matrix for matrix in compression.matrices if matrix.name not in compression.given_up]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        spectra = tuple(pool.map(lambda matrix: _spectrum(run, matrix), cut))
    return ReportFacts(
        output=output,
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
        spectra=spectra,
    )


def sample(name: str, eigenvalues: Sequence[float], rank: int | None) -> SpectrumSample:
    """A spectrum at ranks dense at its head, then evenly, and on both sides of its cut."""
    size = len(eigenvalues)
    ranks = {round(size ** (step / _HEAD)) for step in range(_HEAD)} if size else set()
    ranks |= {-(-size * step // _BODY) for step in range(1, _BODY + 1)} if size else set()
    if rank is not None:
        ranks |= {at for at in (rank, rank + 1) if 1 <= at <= size}
    chosen = tuple(sorted(ranks))
    values = tuple(float(f"{eigenvalues[at - 1]:.{_DIGITS}g}") for at in chosen)
    return SpectrumSample(name=name, size=size, ranks=chosen, values=values)


def _spectrum(run: Run, matrix: MatrixResult) -> SpectrumSample:
    item = run.store.load(spectrum_key(run.ids.bases, matrix.name))
    return sample(matrix.name, item.tensors["eigenvalues"].tolist(), matrix.rank)
