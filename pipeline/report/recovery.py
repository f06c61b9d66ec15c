"""The figure of a recovery: loss against the tokens trained on."""

from statistics import fmean

from pipeline.report import plots
from pipeline.report.figures import Figure, Table
from pipeline.report.wording import duration, figure, share, short
from schemas.request.recovery import Objective, RecoveryConfig
from schemas.result.recovery import RecoveryResult

UNITS: dict[Objective, str] = {
    "kl": "KL from the base, nats a token",
    "tokens": "loss, nats a token",
    "hidden": "relative squared distance",
}


def way(asked: RecoveryConfig) -> str:
    """Say what of the factors was trained, and for what."""
    if not asked.enabled:
        return "those of each layer alone"
    if (rank := asked.rank_of_updates) is None:
        norms = " with the norms" if asked.norms else ""
        return f"all at once{norms}, objective {asked.objective}"
    turns = ", then of ".join(" and ".join(factors) for factors in asked.phases)
    return f"as SVD-LLM does: LoRA of rank {rank} of {turns}, objective {asked.objective}"


def recovery(found: RecoveryResult) -> Figure:
    """Draw the loss on held-out text, and on the text trained on, as training went on."""
    unit = UNITS[found.config.objective]
    held_out = [
        plots.Point(look.tokens, look.held_out, _tip(look.step, look.held_out))
        for look in found.looks
        if look.held_out is not None
    ]
    trained = [
        plots.Point(look.tokens, look.loss, _tip(look.step, look.loss))
        for look in found.looks
        if look.loss is not None
    ]
    named = [("held-out text", held_out), ("text trained on", trained)]
    series = [plots.Series(name, points, ["" for _ in points]) for name, points in named if points]
    gist = (
        f"{unit}, on held-out text: {figure(found.before)} before, {figure(found.after)} after "
        f"{found.looks[found.best].step} of {found.steps} steps, in "
        f"{duration(found.seconds)}{_refined(found)}. The best state is kept. Factors were trained "
        f"{way(found.config)}."
    )
    table = Table(
        "Looks",
        ("step", "tokens", "held out", "trained on"),
        [
            (str(look.step), short(look.tokens), figure(look.held_out), figure(look.loss))
            for look in found.looks
        ],
    )
    drawing = plots.curves(series, "tokens trained on", unit, f"Curve. {gist}")
    return Figure("recovery", gist, [drawing], table)


def _refined(found: RecoveryResult) -> str:
    """Say what refinement left of the error of the layers."""
    if not found.refined:
        return ""
    return f"; layers alone were brought to {share(fmean(found.refined), 0)} of their error"


def _tip(step: int, loss: float) -> str:
    return f"step {step}: {loss:.4f}"
