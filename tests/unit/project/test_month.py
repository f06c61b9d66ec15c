"""The month of tests.campaigns.month with a fake compression: thirty nights in seconds."""

from pathlib import Path

import pytest

from pipeline.nightly.night import nightly
from schemas.errors import NumericsError, OwnershipError
from schemas.request.nightly import NightlyConfig
from tests.campaigns.month import wrong
from tests.campaigns.month_run import NIGHTS, RATIO, Month, draw
from tests.nights import FakeCompress, kill


class Rehearsal(Month):
    """Its nights are in this process."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, "no Ray", draw(seed))
        self.compress = FakeCompress()
        for kind, name in self.drawn.arrivals.values():
            if kind == "bad":
                self.compress.increases[name] = 0.043
            if kind == "corrupt":
                self.compress.failures[name] = NumericsError("q_proj: not finite")

    def once(self) -> int:
        asked = {"watch": str(self.source), "output": self.prefix, "ratio": RATIO, "max": 2}
        texts = {"calibration": {"text": str(self.text)}, "evaluation": {"text": str(self.text)}}
        gate = {"gate": {"perplexity": "2%"}}
        night = nightly(NightlyConfig.model_validate(asked | texts | gate), self.compress)
        return 3 if night.of("failed") else 0

    def kill(self, stage: str) -> int:
        kill(self.compress, self.once)
        return -9

    def two(self) -> tuple[int, ...]:
        refused: list[int] = []

        def second(_: str) -> None:
            if not refused:
                with pytest.raises(OwnershipError, match="is at work"):
                    self.once()
                refused.append(3)

        self.compress.during = second
        code = self.once()
        self.compress.during = lambda _: None
        return code, *refused


@pytest.mark.slow
def test_a_month_ends_as_it_was_drawn(tmp_path: Path) -> None:
    month = Rehearsal(tmp_path, 0)
    nights = [month.night(number)[1] for number in range(1, NIGHTS + 1)]
    assert wrong(month, nights) == []
    assert len(month.compress.made) == len(set(month.compress.made))


@pytest.mark.slow
def test_what_is_not_as_drawn_is_told(tmp_path: Path) -> None:
    month = Rehearsal(tmp_path, 0)
    month.compress.increases.clear()  # nothing is bad
    nights = [month.night(number)[1] for number in range(1, NIGHTS + 1)]
    assert {line.partition(":")[0] for line in wrong(month, nights)} == {
        *("published", "rejected", "published once each"),
    }
