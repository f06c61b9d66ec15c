"""The quality gate: why an output is not published. A pure function of its evaluation."""

from schemas.request.evaluation import EvaluationConfig
from schemas.request.nightly import Gate
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from workers.repetition import degenerate

_PROMPT: str = EvaluationConfig.model_fields["sample_prompt"].default
_QUOTED = 60  # characters of a text that a reason quotes


def reasons(gate: Gate, report: EvaluationReport | None) -> tuple[str, ...]:
    """Return why an output is rejected; empty if it passes. What was not measured does not pass.

    A degenerate sample is not held against a result if its base wrote one too, and of the dozen
    greedy continuations only those beyond the base's count. What a model did not write, because no
    host could load it, is not looked at.
    """
    if report is None or len(report.models) < 2:
        return ("it was not evaluated",)
    base, compressed = report.models[0], report.models[-1]
    found = []
    if gate.perplexity is not None:
        increase = compressed.perplexity / base.perplexity - 1
        if not increase <= gate.perplexity:  # true for NaN as well
            found.append(
                f"perplexity {base.perplexity:.4g} -> {compressed.perplexity:.4g} "
                f"({increase:+.2%}, allowed {gate.perplexity:+.2%})"
            )
    if gate.kl is not None and not (compressed.kl is not None and compressed.kl <= gate.kl):
        measured = "not measured" if compressed.kl is None else f"{compressed.kl:.4f} nats"
        found.append(f"KL {measured}, allowed {gate.kl:g}")
    why = _wrong_with(compressed) if gate.generation else None
    if why is not None and not _wrong_with(base):
        found.append(f"degenerate generation: {why}")
    if gate.generation and (why := _more_degenerate(gate.degenerate, report)):
        found.append(why)
    return tuple(found)


def _more_degenerate(allowed: int, report: EvaluationReport) -> str | None:
    """Return a reason if too many more greedy continuations are degenerate than of the base."""
    base, compressed = report.models[0].generation, report.models[-1].generation
    if base is None or compressed is None:
        return None
    before = [degenerate(text) for text in base.greedy.texts]
    after = [degenerate(text) for text in compressed.greedy.texts]
    counts = [sum(why is not None for why in model) for model in (before, after)]
    if counts[1] - counts[0] <= allowed:
        return None
    new = next(at for at, why in enumerate(after) if why is not None and before[at] is None)
    return (
        f"{counts[1]} of {len(after)} greedy continuations are degenerate, {counts[0]} of the "
        f"base's (allowed {allowed} more): {_quoted(report.prompts[new])} goes on "
        f"{_quoted(compressed.greedy.texts[new])}, {after[new]}"
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}...")


def _wrong_with(model: ModelEvaluation) -> str | None:
    """Return what is wrong with the sample's continuation; None if nothing is, or no sample."""
    return None if model.sample is None else degenerate(model.sample.removeprefix(_PROMPT))
