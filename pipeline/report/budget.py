"""The figure of a budget: what every trial was predicted to cost, and what it cost."""

from pipeline.report import plots
from pipeline.report.figures import Figure, Table
from pipeline.report.wording import figure, share
from schemas.result.budget import BudgetResult, Trial


def budget(found: BudgetResult, ratio: float) -> Figure | None:
    """Draw predicted and measured loss over the ratio, and the limit; None without a trial."""
    if not found.trials:
        return None
    unit = "KL from the base" if found.asked.kl else "increase of the mean token loss"
    trials = sorted(found.trials, key=lambda trial: trial.ratio)
    measured = [_point(trial, trial.measured) for trial in trials]
    expected = [_point(t, t.predicted) for t in trials if t.predicted is not None]
    ends = [100 * trials[0].ratio, 100 * trials[-1].ratio]
    limit = [plots.Point(at, found.limit, f"limit: {found.limit:.4f}") for at in ends]
    named = (("measured", measured), ("predicted", expected), ("limit", limit))
    series = [plots.Series(name, points, ["" for _ in points]) for name, points in named if points]
    by_spectra = "" if found.predicted is None else f"; the spectra alone chose {found.predicted:g}"
    gist = (
        f"{found.asked.option}: ratio {ratio:g} is the highest that keeps it, with "
        f"{figure(found.reached)} of {figure(found.limit)} nats{by_spectra}"
    )
    drawing = plots.curves(series, "ratio, per cent", f"{unit}, nats a token", f"Curve. {gist}.")
    rows = [
        (
            share(trial.ratio),
            figure(trial.predicted),
            figure(trial.measured),
            f"{trial.perplexity:.2f}",
            figure(trial.kl),
            "yes" if trial.kept else "no",
        )
        for trial in found.trials
    ]
    head = ("ratio", "predicted nats", "measured nats", "perplexity", "KL", "within")
    return Figure("budget", f"{gist}.", [drawing], Table("Trials, in their order", head, rows))


def _point(trial: Trial, nats: float) -> plots.Point:
    return plots.Point(100 * trial.ratio, nats, f"{share(trial.ratio)}: {nats:.4f}")
