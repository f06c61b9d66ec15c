"""The figures of a report: each a drawing, its gist in words, and the same numbers as a table."""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report import charts, plots
from pipeline.report.svg import tag
from pipeline.report.wording import count, duration, share
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from schemas.result.output import MatrixResult
from schemas.result.report import ReportFacts, SpectrumSample, StageTime

_LEAST = 1e-9  # the least eigenvalue that a spectrum shows, relative to the largest


class Table(NamedTuple):
    """Rows whose first field is their heading."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Figure(NamedTuple):
    """One or several drawings that say the same thing; `name` is an anchor."""

    name: str
    gist: str
    drawings: list[Markup]
    table: Table


class Place(NamedTuple):
    """A matrix's place: `layers.3.self_attn.q_proj` is in layer 3, of type `self_attn.q_proj`."""

    layer: int
    kind: str


def place_of(name: str) -> Place:
    """Return layer and type of a matrix of any family."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isascii() and part.isdigit()), None)
    if at is None:
        return Place(0, name)
    return Place(int(parts[at][:9]), ".".join(parts[at + 1 :]))


def short_kinds(kinds: Sequence[str]) -> dict[str, str]:
    """Shorten every type to its last name, with the numbers after it, if no other type ends so;
    otherwise keep it whole.
    """
    lasts = [re.sub(r".*\.(?=\D)", "", kind) for kind in kinds]
    return {
        kind: last if lasts.count(last) == 1 else kind
        for kind, last in zip(kinds, lasts, strict=True)
    }


class Matrices:
    """The rows of compression.json by layer and type, in the order of the model.

    The head, which is in no layer, is shown with the last one.
    """

    def __init__(self, matrices: Sequence[MatrixResult]) -> None:
        last = max((place_of(m.name).layer for m in matrices), default=0)
        self.at: dict[Place, MatrixResult] = {
            place._replace(layer=last) if place.kind == m.name else place: m
            for place, m in ((place_of(m.name), m) for m in matrices)
        }
        self.layers = sorted({place.layer for place in self.at})
        self.kinds = list(dict.fromkeys(place.kind for place in self.at))
        self.short = short_kinds(self.kinds)

    def of(self, kind: str) -> list[tuple[int, MatrixResult]]:
        """Matrices of one type, with their layers."""
        return [(place.layer, m) for place, m in self.at.items() if place.kind == kind]

    def label(self, place: Place) -> str:
        if self.at[place].name == place.kind:
            return place.kind
        return f"layer {place.layer}, {self.short[place.kind]}"


def base_and_made(
    evaluation: EvaluationReport | None,
) -> tuple[ModelEvaluation, ModelEvaluation] | None:
    """Return both models of an evaluation; None if there is none, or it has one model only."""
    if evaluation is None or len(evaluation.models) < 2:
        return None
    return evaluation.models[0], evaluation.models[1]


def kept(matrix: MatrixResult) -> float:
    """The rank of a matrix as a share of its full rank; of a pruned one, of its neurons."""
    return 1.0 if matrix.rank is None else matrix.rank / matrix.full


def ranks(matrices: Matrices) -> Figure:
    """Draw a field for every matrix; the more of its rank is kept, the darker it is."""
    cells = []
    for place, matrix in matrices.at.items():
        tip = f"{matrices.label(place)}: {_cut(matrix)}, {matrix.encoding}"
        tip += f", {share(kept(matrix))} of full"
        text = "D" if matrix.rank is None else str(matrix.rank)
        row = matrices.short[place.kind]
        cells.append(charts.Cell(row, place.layer, kept(matrix), text, tip, matrix.rank is None))
    means = {kind: fmean(kept(m) for _, m in matrices.of(kind)) for kind in matrices.kinds}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    dense = sum(matrix.rank is None for matrix in matrices.at.values())
    pruned = sum(matrix.is_pruned for matrix in matrices.at.values())
    gist = (
        f"{matrices.short[most]} keeps most, {share(means[most], 0)} of its full rank on average; "
        f"{matrices.short[least]} least, {share(means[least], 0)}. "
        f"{dense or 'None'} of {len(matrices.at)} matrices stayed dense"
        f"{f', {pruned} lost neurons in the place of ranks' if pruned else ''}."
    )
    names = [matrices.short[kind] for kind in matrices.kinds]
    drawing = charts.heat_map(
        names, matrices.layers, cells, "decoder layer", f"Heat map. {gist}", "of the full rank"
    )
    rows = [
        (str(layer), *(_rank_text(matrices.at.get(Place(layer, k))) for k in matrices.kinds))
        for layer in matrices.layers
    ]
    return Figure(
        "ranks", gist, [drawing], Table("Rank by layer and type", ("layer", *names), rows)
    )


def _rank_text(matrix: MatrixResult | None) -> str:
    if matrix is None:
        return ""
    if matrix.rank is None:
        return "dense"
    return f"{matrix.rank} neurons" if matrix.is_pruned else str(matrix.rank)


def _cut(matrix: MatrixResult) -> str:
    if matrix.rank is None:
        return "dense"
    return f"{'neurons' if matrix.is_pruned else 'rank'} {matrix.rank} of {matrix.full}"


def spectra(matrices: Matrices, samples: Sequence[SpectrumSample]) -> Figure:
    """Draw a panel per type, with a line for every layer."""
    found = {sample.name: sample for sample in samples}
    deepest = max(matrices.layers, default=0) or 1
    drawings = []
    for kind in matrices.kinds:
        lines = []
        for layer, matrix in matrices.of(kind):
            if (sample := found.get(matrix.name)) is None:
                continue
            points = list(zip(sample.ranks, sample.values, strict=False))
            tip = f"layer {layer}: {_cut(matrix)}"
            lines.append(plots.Spectrum(points, matrix.cut_at, layer / deepest, tip))
        name = matrices.short[kind]
        label = f"{name}: spectra of {len(lines)} layers. {_cuts(matrices, kind)}"
        panel = plots.spectra(lines, _floor(lines), label)
        drawings.append(tag("div", tag("h3", name), panel))
    energies = [e for m in matrices.at.values() if (e := _kept_energy(m)) is not None]
    gist = (
        "One line a layer, fainter ones nearer to the input. A dot is a cut: the "
        "eigenvalues to its right were dropped."
    )
    if energies:
        gist += f" What is kept holds {share(fmean(energies))} of the energy on average."
    return Figure("spectra", gist, drawings, _spectra_table(matrices))


def _floor(lines: Sequence[plots.Spectrum]) -> float:
    """Return the least relative eigenvalue that a panel shows."""
    shown = [[v for _, v in line.points] for line in lines if line.points]
    parts = [v / values[0] for values in shown for v in values if values[0] > 0 and v > 0]
    return min(max(min(parts, default=0.1), _LEAST), 0.1)


def _kept_energy(matrix: MatrixResult) -> float | None:
    return 1 - matrix.predicted_loss / matrix.energy if matrix.energy else None


def _cuts(matrices: Matrices, kind: str) -> str:
    cut = sorted(m.cut_at for _, m in matrices.of(kind) if m.cut_at is not None)
    return f"Cut between rank {cut[0]} and {cut[-1]}." if cut else "None of them was cut by rank."


def _spectra_table(matrices: Matrices) -> Table:
    rows = []
    for kind in matrices.kinds:
        mine = [matrix for _, matrix in matrices.of(kind)]
        cut = sorted(m.cut_at for m in mine if m.cut_at is not None)
        energies = [e for m in mine if (e := _kept_energy(m)) is not None]
        numbers = (cut[0], cut[len(cut) // 2], cut[-1]) if cut else ("", "", "")
        held = (share(min(energies)), share(fmean(energies))) if energies else ("", "")
        full = min(mine[0].shape)
        rows.append((matrices.short[kind], *map(str, (full, *numbers)), *held))
    cuts = ("lowest cut", "median", "highest")
    head = ("type", "full rank", *cuts, "least energy kept", "mean energy kept")
    return Table("Cuts by type", head, rows)


def stages(facts: ReportFacts) -> Figure:
    """Draw wall time by stage, and how busy each worker was if that was measured."""
    total = sum(stage.seconds for stage in facts.stages)
    longest = max(facts.stages, key=lambda stage: stage.seconds, default=None)
    gist = f"{duration(total)} in all on {count(facts.workers, 'worker')}"
    if longest is not None and total:
        gist += f"; {longest.name} took {share(longest.seconds / total, 0)} of it"
    rows = [charts.Bar(s.name, s.seconds, duration(s.seconds)) for s in facts.stages]
    drawings = [charts.bars(rows, "time by stage", f"Bars of seconds by stage. {gist}.")]
    measured = [stage for stage in facts.stages if stage.busy]
    if measured:
        drawings.append(_busy(measured))
    table = Table(
        "Stages",
        ("stage", "time", "of the run", "workers busy"),
        [
            (s.name, duration(s.seconds), share(s.seconds / (total or 1)), _shares(s.busy))
            for s in facts.stages
        ],
    )
    return Figure("stages", f"{gist}.", drawings, table)


def _busy(measured: Sequence[StageTime]) -> Markup:
    cells = [
        charts.Cell(
            stage.name,
            worker,
            part,
            f"{100 * part:.0f}",
            f"{stage.name}, worker {worker}: {share(part)}",
        )
        for stage in measured
        for worker, part in enumerate(stage.busy)
    ]
    workers = list(range(max(len(stage.busy) for stage in measured)))
    parts = [part for stage in measured for part in stage.busy]
    label = (
        f"Heat map: workers were busy {share(min(parts), 0)} to {share(max(parts), 0)} of a stage"
    )
    names = [stage.name for stage in measured]
    return charts.heat_map(names, workers, cells, "per cent busy, by worker", label)


def _shares(busy: Sequence[float]) -> str:
    return ", ".join(share(part, 0) for part in busy)
