"""The quality gate: why an output is not published. A pure function of its evaluation."""

import math
from collections.abc import Sequence

from schemas.request.evaluation import EvaluationConfig
from schemas.request.nightly import Gate
from schemas.result.evaluation import EvaluationReport, ModelEvaluation

_PROMPT: str = EvaluationConfig.model_fields["sample_prompt"].default
_FEWEST_WORDS = 8  # a shorter text is judged by its characters: some languages part no words
_REPEATS = 4  # of a cycle, before it counts
_COVERED = 0.5  # share of a text that a cycle must cover, up to the end of the text
_LONG = 24  # words; from here on a text's variety counts
_VARIETY = 0.2  # smallest share of distinct words in a long text


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


def degenerate(text: str) -> str | None:
    """Return what is wrong with a generated text; None if nothing is.

    A text is degenerate if it is empty, if it repeats one short cycle until its end, or if it is
    long and has hardly any distinct words. Lists, refrains and tables are meant to pass: the test
    would rather miss than accuse.
    """
    words = text.split()
    if not words:
        return "empty"
    by_words = len(words) >= _FEWEST_WORDS
    units: Sequence[str] = words[:-1] if by_words else "".join(words)  # the last may be cut
    if (period := _cycle(units)) is not None:
        unit = " ".join(units[-period:]) if by_words else "".join(units[-period:])
        return f"{unit!r} again and again"
    distinct = len(set(words))
    if len(words) >= _LONG and distinct < math.ceil(_VARIETY * len(words)):
        return f"{distinct} distinct words of {len(words)}"
    return None


def _cycle(units: Sequence[str]) -> int | None:
    """Length of the shortest cycle that covers most of a text up to its end; None if none does."""
    size = len(units)
    for period in range(1, size // _REPEATS + 1):
        covered = period
        while covered < size and units[size - covered - 1] == units[size - covered - 1 + period]:
            covered += 1
        fewest = max(_REPEATS * period, _FEWEST_WORDS)
        if covered >= max(fewest, _COVERED * size):
            return period
    return None
