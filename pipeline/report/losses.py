"""The figures of loss: predicted against measured, and where in the model it occurs."""

from collections.abc import Sequence
from statistics import fmean, median

from markupsafe import Markup

from pipeline.report import charts, plots
from pipeline.report.figures import Figure, Matrices, Place, Table
from pipeline.report.wording import PER_CENT, count, figure, optimism, share
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Compression
from schemas.result.output import MatrixResult


def losses(
    matrices: Matrices, compression: Compression, evaluation: EvaluationReport | None
) -> Figure:
    """Plot every cut matrix: the loss that was predicted against that of what is stored.

    The loss of an MLP that lacks neurons is that of the matrix that reads them.
    """
    cut = {
        place: m
        for place, m in matrices.at.items()
        if m.rank is not None and m.encoding != "pruned-rows"
    }
    series = [
        plots.Series(
            matrices.short[kind],
            [
                plots.Point(
                    m.predicted_loss, m.achieved_loss, f"{matrices.label(place)}: {_pair(m)}"
                )
                for place, m in cut.items()
                if place.kind == kind
            ],
        )
        for kind in matrices.kinds
    ]
    worst = sorted(cut.items(), key=lambda item: -abs(_deviation(item[1]) or 0.0))
    gist = "No matrix was cut."
    if worst:
        place, matrix = worst[0]
        gist = (
            f"The measured loss of {count(len(cut), 'cut matrix', 'cut matrices')} differs from "
            f"the predicted one by at most {_percent(abs(_deviation(matrix) or 0.0))} "
            f"({matrices.label(place)})."
        )
    gist += _whole_model(compression, evaluation) + _shrinkage(compression.matrices)
    drawing = plots.scatter(
        series, "predicted", "measured loss a token; on the line both are equal", gist
    )
    compared = _compared(compression, evaluation)
    rows = [
        (
            matrices.label(place),
            figure(m.predicted_loss),
            figure(m.achieved_loss),
            _percent(_deviation(m)),
            figure(m.rounding),
        )
        for place, m in worst[:20]
    ]
    head = ("matrix", "predicted", "measured", "difference", "rounding of the stored factors")
    return Figure(
        "losses", gist, [drawing, *compared], Table("The matrices that differ most", head, rows)
    )


def _whole_model(compression: Compression, evaluation: EvaluationReport | None) -> str:
    if compression.nats is None:
        return " This method predicts no token loss."
    said = f" Of the whole model, {figure(compression.nats)} nats a token were predicted"
    if evaluation is None or evaluation.nats is None:
        return f"{said}; it was not evaluated."
    said += f", and {figure(evaluation.nats)} measured "
    said += f"on {count(evaluation.models[1].windows, 'window')}"
    if compression.recovery is not None:
        return f"{said} after training."
    return f"{said}{optimism(compression.nats, evaluation.nats)}."


def _shrinkage(matrices: Sequence[MatrixResult]) -> str:
    """Say how far gradient moments were shrunk toward the identity, if any was."""
    found = sorted(m.shrinkage for m in matrices if m.shrinkage is not None)
    if not found:
        return ""
    return (
        f" The shrinkage of gradient moments is {figure(found[0])} to {figure(found[-1])}, "
        f"its median {figure(median(found))}."
    )


def _compared(compression: Compression, evaluation: EvaluationReport | None) -> list[Markup]:
    """Draw the predicted and measured increase of the model's token loss, if both are known, and of
    the same factors.
    """
    if compression.nats is None or evaluation is None or evaluation.nats is None:
        return []
    if compression.recovery is not None:
        return []
    both = {"predicted": compression.nats, "measured": evaluation.nats}
    rows = [
        charts.Bar(name, max(value, 0.0), f"{figure(value)} nats") for name, value in both.items()
    ]
    title = "increase of the token loss, whole model"
    said = ", ".join(f"{bar.label} {bar.text}" for bar in rows)
    return [charts.bars(rows, title, f"The whole model's increase of the token loss: {said}.")]


def _pair(matrix: MatrixResult) -> str:
    return f"predicted {figure(matrix.predicted_loss)}, measured {figure(matrix.achieved_loss)}"


def _deviation(matrix: MatrixResult) -> float | None:
    if not matrix.predicted_loss:
        return None
    return matrix.achieved_loss / matrix.predicted_loss - 1


def _percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{figure(100 * value, 2)}{PER_CENT}"


def layers(matrices: Matrices, compression: Compression) -> Figure:
    """Draw the predicted loss by layer: in nats, stacked, or relative to each matrix's energy."""
    in_nats = compression.nats is not None
    blocks = dict.fromkeys(map(_block, matrices.at))
    groups = list(blocks) if in_nats else ["mean of its matrices"]
    values = {}
    for layer in matrices.layers:
        mine = [(place, m) for place, m in matrices.at.items() if place.layer == layer]
        if in_nats:
            values[layer] = {
                group: sum(m.nats or 0.0 for place, m in mine if _block(place) == group)
                for group in groups
            }
        else:
            values[layer] = {groups[0]: fmean(_lost(m) for _, m in mine)}
    totals = {layer: sum(parts.values()) for layer, parts in values.items()}
    unit = "predicted loss in nats a token" if in_nats else "loss relative to the energy"
    gist = _costliest(totals, in_nats)
    drawing = charts.columns(
        values, groups, f"{unit}{', from below:' if in_nats else ''}", f"Columns by layer. {gist}"
    )
    rows = [
        (str(layer), *(figure(parts[group]) for group in groups), figure(totals[layer]))
        for layer, parts in values.items()
    ]
    return Figure(
        "layers", gist, [drawing], Table(f"By layer: {unit}", ("layer", *groups, "all"), rows)
    )


def _block(place: Place) -> str:
    """Return the part of a layer that a matrix belongs to, such as its attention."""
    return place.kind.partition(".")[0]


def _lost(matrix: MatrixResult) -> float:
    return matrix.predicted_loss / matrix.energy if matrix.energy else 0.0


def _costliest(totals: dict[int, float], in_nats: bool) -> str:
    whole = sum(totals.values())
    if not whole:
        return "No layer lost anything."
    order = sorted(totals, key=totals.__getitem__, reverse=True)
    first = order[0]
    if not in_nats:
        return f"Layer {first} lost most: {share(totals[first])} of its energy."
    top = order[: max(1, len(order) // 10)]
    part = sum(totals[layer] for layer in top) / whole
    named = ", ".join(map(str, sorted(top)))
    gist = (
        f"Layer {first} costs most: {figure(totals[first])} of {figure(whole)} nats, "
        f"{share(totals[first] / whole, 0)}."
    )
    if len(top) > 1:
        gist += f" The {len(top)} costliest ({named}) have {share(part, 0)}."
    return gist
