"""Which generated texts are taken for degenerate, and the share of 4-grams that repeat."""

import pytest

from tests.prose import STORY
from workers.repetition import degenerate, generation_of, repetition

POEM = "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life"
ITEMS = "1. Open the file. 2. Read the file. 3. Close the file. 4. Open the next file. 5. Read it."
TABLE = "a | 1 | 2 b | 3 | 4 c | 5 | 6 d | 7 | 8 e | 9 | 10 f | 11 | 12 g | 13 | 14"
CODE = "for i in range(3): print(i) for j in range(4): print(j) return i + j if i else None"
CHINESE = "这座城市位于河边，河流给了它名字。老城区有狭窄的街道和每周六举行的集市。"


@pytest.mark.parametrize(
    "text", [STORY, POEM, ITEMS, TABLE, CODE, CHINESE, "yes", "no no no", f"{STORY}\n\n\n"]
)
def test_a_sound_text_passes(text: str) -> None:
    assert degenerate(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("It was late." + "\n" * 9, "9 line breaks at its end"),
        (STORY + "\n \n" * 4, "8 line breaks at its end"),
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
    ("tokens", "share"),
    [
        ([], 0.0),
        ([5, 5, 5], 0.0),
        ([1, 2, 3, 4], 0.0),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4], 1 / 6),
        ([7] * 64, 60 / 61),
        ([1, 2] * 32, 59 / 61),
        (list(range(64)), 0.0),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_occurred_before(
    tokens: list[int], share: float
) -> None:
    assert repetition(tokens) == pytest.approx(share, abs=1e-12)


def test_figures_of_what_was_written() -> None:
    loop = {"text": "the " * 20, "tokens": [7] * 64}
    short = {"text": "Yes, it is.", "tokens": [1, 2, 3, 4, 5]}
    story = {"text": STORY, "tokens": list(range(64))}
    nothing = {"text": "", "tokens": []}
    found = generation_of({"greedy": [loop, story], "sampled": [short, nothing]})
    assert found.greedy.repetition == pytest.approx(30 / 61)
    assert (found.greedy.degenerate, found.greedy.early) == (1, 0)
    assert found.greedy.texts == (loop["text"], STORY)
    assert found.sampled.repetition == 0
    assert (found.sampled.degenerate, found.sampled.early) == (1, 2)
