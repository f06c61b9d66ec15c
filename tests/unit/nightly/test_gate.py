"""The quality gate: what it lets pass, and why it rejects the rest."""

import pytest
from pydantic import ValidationError

from pipeline.nightly.gate import reasons
from schemas.request.nightly import Gate
from schemas.result.evaluation import EvaluationReport
from tests.nights import report
from tests.prose import STORY
from tests.reports import generation


@pytest.mark.parametrize(
    ("written", "limit"), [("5%", 0.05), (" 12.5 %", 0.125), ("0.05", 0.05), (0.2, 0.2)]
)
def test_a_gate_is_written_as_percent_or_as_a_fraction(written: object, limit: float) -> None:
    assert Gate.model_validate({"perplexity": written}).perplexity == limit


@pytest.mark.parametrize("written", ["-1%", "much", "x%"])
def test_another_gate_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="perplexity"):
        Gate.model_validate({"perplexity": written})


def test_the_limit_itself_passes_and_more_does_not() -> None:
    gate = Gate(perplexity=0.25)
    assert reasons(gate, report(0.25)) == ()
    assert reasons(gate, report(-0.5)) == ()
    (why,) = reasons(gate, report(0.26))
    assert why == "perplexity 20 -> 25.2 (+26.00%, allowed +25.00%)"


@pytest.mark.parametrize("increase", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_pass(increase: float) -> None:
    assert len(reasons(Gate(perplexity=0.9), report(increase))) == 1


def test_kl_passes_only_where_it_was_measured() -> None:
    gate = Gate(kl=0.1)
    assert reasons(gate, report(5.0, kl=0.1)) == ()
    assert reasons(gate, report(0.0, kl=0.2)) == ("KL 0.2000 nats, allowed 0.1",)
    assert reasons(gate, report(0.0)) == ("KL not measured, allowed 0.1",)


def test_a_text_is_held_against_a_result_unless_its_base_writes_no_better() -> None:
    loop = "The city lies on the river" + " and on" * 20
    for base in (STORY, None):  # a streamed evaluation has no sample of the base
        (why,) = reasons(Gate(), report(0.0, loop, base=base))
        assert why == "degenerate generation: 'on and' again and again"
    assert reasons(Gate(), report(0.0, loop, base=loop)) == ()
    assert reasons(Gate(generation=False), report(0.0, loop, base=STORY)) == ()
    assert reasons(Gate(), report(0.0, None, base=STORY)) == ()


def test_the_prompt_is_no_part_of_what_was_generated() -> None:
    (why,) = reasons(Gate(), report(0.0, "The city lies on the river", base=STORY))
    assert why == "degenerate generation: empty"


LOOP = " and on" * 20


def dozen(before: int | None, after: int | None) -> EvaluationReport:
    """A report whose models write so many loops and otherwise a story; None writes nothing."""
    evaluated = report(0.0)
    models = tuple(
        model.model_copy(
            update={"generation": None if loops is None else generation(loops, LOOP, STORY)}
        )
        for model, loops in zip(evaluated.models, (before, after), strict=True)
    )
    prompts = tuple(f"prompt\n{at}" for at in range(12))
    return evaluated.model_copy(update={"models": models, "prompts": prompts})


def test_clearly_more_degenerate_continuations_than_the_bases_do_not_pass() -> None:
    (why,) = reasons(Gate(), dozen(2, 6))
    assert why == (
        "6 of 12 greedy continuations are degenerate, 2 of the base's (allowed 3 more): "
        f"'prompt\\n2' goes on '{LOOP[:60]}...', 'on and' again and again"
    )
    for before, after in ((2, 5), (6, 2), (12, 12), (None, 12), (0, None)):
        assert reasons(Gate(), dozen(before, after)) == ()
    assert reasons(Gate(degenerate=4), dozen(2, 6)) == ()
    assert reasons(Gate(degenerate=0), dozen(2, 3))
    assert reasons(Gate(generation=False), dozen(0, 12)) == ()


def test_what_was_not_evaluated_does_not_pass() -> None:
    assert reasons(Gate(), None) == ("it was not evaluated",)
