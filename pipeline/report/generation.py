"""What models wrote after a dozen prompts, as rows of tables."""

from pipeline.report.figures import base_and_made
from schemas.result.evaluation import EARLY, EvaluationReport, Generation


def figures(wrote: Generation | None, number: int) -> dict[str, str]:
    """Return how far each kind of continuation repeats itself, by name; "" if nothing was written.

    There are `number` prompts.
    """
    modes = () if wrote is None else (wrote.greedy, wrote.sampled)
    found = {
        "repetition (seq-rep-4)": [f"{mode.repetition:.2f}" for mode in modes],
        f"degenerate of {number}": [str(mode.degenerate) for mode in modes],
        f"ended within {EARLY} tokens, of {number}": [str(mode.early) for mode in modes],
    }
    return {f"{name}, greedy / sampled": " / ".join(said) for name, said in found.items()}


def compared(report: EvaluationReport | None) -> list[tuple[str, str, str]]:
    """Return the figures of base and result; none if one of them wrote nothing."""
    if report is None or not (models := base_and_made(report)):
        return []
    base, made = (model.generation for model in models)
    if base is None or made is None:
        return []
    number = len(report.prompts)
    before, after = figures(base, number), figures(made, number)
    return [(name, before[name], after[name]) for name in before]


def texts(report: EvaluationReport | None) -> list[tuple[str, str, str]]:
    """Return every prompt with its greedy continuations by base and result, if both wrote them."""
    if report is None or not compared(report):
        return []
    base, made = (model.generation.greedy.texts for model in report.models if model.generation)
    return list(zip(report.prompts, map(_short, base), map(_short, made), strict=True))


def _short(text: str) -> str:
    """Return a text with many line breaks at its end counted instead."""
    written = text.rstrip()
    breaks = text[len(written) :].count("\n")
    return f"{written}\n[{breaks} line breaks]" if breaks > 1 else text
