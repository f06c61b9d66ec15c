"""The quality gate: why an output is not published. A pure function of its evaluation."""

from schemas.request.evaluation import EvaluationConfig
from schemas.request.nightly import Gate
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from workers.evaluation.repetition import degenerate

_PROMPT: str = EvaluationConfig.model_fields["sample_prompt"].default


def reasons(gate: Gate, report: EvaluationReport | None) -> tuple[str, ...]:
    """Return why an output is rejected; empty if it passes. What was not measured does not pass.

    A degenerate sample is not held against a result if its base wrote one too. If there is no
    sample, because no host could load the result, the text check is skipped.
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
    return tuple(found)


def _wrong_with(model: ModelEvaluation) -> str | None:
    """Return what is wrong with the sample's continuation; None if nothing is, or no sample."""
    return None if model.sample is None else degenerate(model.sample.removeprefix(_PROMPT))
