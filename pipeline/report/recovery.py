"""The figure of a recovery: loss against the tokens trained on."""

from collections.abc import Iterable
from statistics import fmean

from pipeline.report import plots
from pipeline.report.figures import Figure, Table
from pipeline.report.wording import duration, figure, share, short
from schemas.request.recovery import Objective, RecoveryConfig
from schemas.result.recovery import Look, RecoveryResult

UNITS: dict[Objective, str] = {
    "kl": "KL from the base, nats a token",
    "tokens": "loss, nats a token",
    "hidden": "relative squared distance",
}


def trained(found: RecoveryResult) -> str:
    """Say what of the factors was trained, for what, and on how many tokens."""
    asked, first, parts = found.config, found.refinement, list[str]()
    if found.refined:
        tokens = min(first.windows, found.windows) * asked.sequence_length
        times = f"{first.passes} times" if first.passes > 1 else "once"
        parts.append(f"those of each layer alone, {times} on {tokens:,} tokens")
    if asked.enabled:
        tokens = found.looks[-1].tokens
        parts.append(f"{_way(asked)}, objective {asked.objective}, on {tokens:,} tokens")
    return ", then ".join(parts)


def _way(asked: RecoveryConfig) -> str:
    if (rank := asked.rank_of_updates) is None:
        return "all at once with the norms" if asked.norms else "all at once"
    turns = ", then of ".join(" and ".join(factors) for factors in asked.phases)
    return f"as SVD-LLM does, by LoRA of rank {rank} of {turns}"


def recovery(found: RecoveryResult) -> Figure:
    """Draw the loss on held-out text, and on the text trained on, as training went on."""
    unit = UNITS[found.config.objective]
    held_out = _points((look, look.held_out) for look in found.looks)
    learnt = _points((look, look.loss) for look in found.looks)
    named = [("held-out text", held_out), ("text trained on", learnt)]
    series = [plots.Series(name, points, ["" for _ in points]) for name, points in named if points]
    steps = f" {found.looks[found.best].step} of {found.steps} steps" if found.steps else ""
    gist = (
        f"{unit}, on held-out text: {figure(found.before)} before, {figure(found.after)} after"
        f"{steps}, in {duration(found.seconds)}{_refined(found)}. The best state is kept. Factors "
        f"were trained: {trained(found)}."
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
    """Say what refinement left of the error of the layers that are cut."""
    if not (left := [one for one in found.refined if one is not None]):
        return ""
    return f"; layers alone were brought to {share(fmean(left), 0)} of their error"


def _points(found: Iterable[tuple[Look, float | None]]) -> list[plots.Point]:
    """Return the losses that are known, over the tokens trained on."""
    known = [(look, loss) for look, loss in found if loss is not None]
    return [plots.Point(at.tokens, loss, f"step {at.step}: {loss:.4f}") for at, loss in known]
