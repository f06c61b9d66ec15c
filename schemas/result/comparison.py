"""The result of `svdllm compare`."""

from pydantic import Field

from schemas.base import Schema
from schemas.request.methods import TITLES
from schemas.result.evaluation import EvaluationReport
from schemas.result.tasks import TaskReport


class Compared(Schema):
    """One method at one ratio, as stored or in a scheme of fewer bits, or the base itself in one:
    then `method` is the name of that.

    `evaluations` are beside the base, in the order of the texts; so are `tasks`, if any were asked.
    All are computed in `dtype`; auto: as the checkpoint is stored.
    `predicted` is the increase of the mean token loss that its run predicted, in nats, if it does.
    """

    method: str
    ratio: float
    removed: float
    parameters: int
    bytes: int
    predicted: float | None
    place: str
    dtype: str
    evaluations: tuple[EvaluationReport, ...]
    tasks: TaskReport | None = None
    scheme: str | None = None

    @property
    def title(self) -> str:
        """Its name in a table."""
        return title(self.method, self.scheme)


def title(method: str, scheme: str | None = None) -> str:
    """Return the name of a method, in a scheme if it is quantised; or of the base in a scheme."""
    found = next((text for name, text in TITLES.items() if name == method), f"base in {method}")
    return found if scheme is None else f"{found} in {scheme}"


class ComparisonReport(Schema):
    """All by ratio, which is 0 of a base that is quantised; `seconds` are those of this start.

    If a size was asked for, `best` is the place of the row with the lowest perplexity on the first
    text, and `beyond` tells why a name has no row.
    """

    model: str
    texts: tuple[str, ...]
    rows: tuple[Compared, ...]
    seconds: dict[str, float]
    size: int | None = None
    best: str | None = None
    beyond: dict[str, str] = Field(default_factory=dict)
