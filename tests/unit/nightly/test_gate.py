"""The quality gate, and which generated texts it takes for degenerate."""

import pytest
from pydantic import ValidationError

from pipeline.nightly.gate import degenerate, reasons
from schemas.request.nightly import Gate
from tests.nights import report

STORY = (
    "The city lies on the river, and the river gives it its name. In the old town there are "
    "narrow streets, a market that is held on Saturdays, and the church of the weavers."
)
POEM = "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life"
ITEMS = "1. Open the file. 2. Read the file. 3. Close the file. 4. Open the next file. 5. Read it."
TABLE = "a | 1 | 2 b | 3 | 4 c | 5 | 6 d | 7 | 8 e | 9 | 10 f | 11 | 12 g | 13 | 14"
CODE = "for i in range(3): print(i) for j in range(4): print(j) return i + j if i else None"
CHINESE = "这座城市位于河边，河流给了它名字。老城区有狭窄的街道和每周六举行的集市。"


@pytest.mark.parametrize("text", [STORY, POEM, ITEMS, TABLE, CODE, CHINESE, "yes", "no no no"])
def test_a_sound_text_passes(text: str) -> None:
    assert degenerate(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("the " * 20, "'the' again"),
        ("aaaaaaaaaaaaaaaa", "'a' again"),
        ("The city is " + "the city of " * 8, "again and again"),
        ("It begins well, then " + "and it goes on, " * 9 + "and it go", "again and again"),
        ("好的" * 10, "again and again"),
        ("a b c b a c c b b a c a a b c c a b a c b a b c b a c", "3 distinct words of 27"),
        (STORY + " of" * 40, "'of' again"),
    ],
)
def test_a_degenerate_text_is_told_why(text: str, why: str) -> None:
    assert why in (degenerate(text) or "")


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


def test_what_was_not_evaluated_does_not_pass() -> None:
    assert reasons(Gate(), None) == ("it was not evaluated",)
