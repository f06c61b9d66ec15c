"""The page of a bench: how speed goes with what was removed."""

from pathlib import Path
from statistics import median

from pipeline.report import plots, wording
from pipeline.report.figures import Figure, Table
from pipeline.report.page import render_page
from schemas.result.bench import BenchReport, over

_SPEEDS = {
    "prefill": "Prompt tokens a second, over the first model's",
    "decode": "New tokens a second, over the first model's",
}


def bench_page(report: BenchReport) -> str:
    """Render a page with a plot of either speed; only of several models is there a plot."""
    several = len(report.models) > 1
    turns = "models in turn" if report.in_turn else "each model alone on a worker"
    return render_page(
        "bench.html.j2",
        headline=f"Speed of {wording.count(len(report.models), 'model')} as served",
        setting=f"{report.setting}; {turns}",
        figures=[(title, _figure(report, name)) for name, title in _SPEEDS.items() if several],
        table=_table(report),
    )


def _figure(report: BenchReport, speed: str) -> Figure:
    """Draw a line for each workload over the share of the first model's parameters removed."""
    first = report.models[0]
    series = []
    for at, load in enumerate(first.served):
        points = sorted(
            plots.Point(
                100 * (1 - model.parameters / first.parameters),
                over(getattr(model.served[at], speed), getattr(load, speed)),
                Path(model.name).name,
            )
            for model in report.models
        )
        series.append(
            plots.Series(load.workload.words, points, [f"{point.y:.2f}" for point in points])
        )
    gist = plots.said(series)
    rows = [
        (one.name, point.tip, wording.share(point.x / 100), f"{point.y:.2f}")
        for one in series
        for point in one.points
    ]
    titles = ("parameters removed, per cent", "times the base")
    drawing = plots.curves(series, *titles, f"Curve. {gist}")
    head = ("line", "model", "removed", "times")
    return Figure(speed, gist, [drawing], Table(_SPEEDS[speed], head, rows))


def _table(report: BenchReport) -> Table:
    rows = [
        (
            Path(model.name).name,
            load.workload.words,
            f"{median(load.first_token_s):.3f}",
            f"{median(load.prefill):,.0f}",
            f"{median(load.decode):,.1f}",
            f"{model.load_s:.1f}",
            wording.size(model.peak_bytes) if model.peak_bytes else wording.figure(None),
        )
        for model in report.models
        for load in model.served
    ]
    head = ("model", "workload", "first token, s", "prompt tokens/s", "new tokens/s")
    return Table("Medians of all rounds", (*head, "load, s", "peak memory"), rows)
