"""The configuration of `svdllm export`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.location import LocalPath
from schemas.model.spec import Factors
from schemas.request.compression import Ratio
from schemas.request.settings import SEVERAL, Flag


class ExportConfig(Request):
    """Another form of a finished checkpoint: the same W', stored otherwise; or other ratios of a
    finished run, from what it measured.
    """

    checkpoint: Annotated[str, Flag(positional=True)] = Field(
        min_length=1,
        description="A finished checkpoint of this program: a folder or a hub id; with --ratio, a "
        "run directory",
    )
    output: LocalPath = Field(description="Folder of the new checkpoint")
    factors: Factors | None = Field(None, description="Store every cut matrix this way")
    dense: bool = Field(
        False,
        description="Multiply the factors out: a model of the base's own architecture, and of its "
        "size, unless all MLPs lack as many neurons",
    )
    ratio: Annotated[tuple[Ratio, ...], SEVERAL] = Field(
        (), description="Compress at other ratios, one or several, with all that a run has measured"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum((self.dense, self.factors is not None, bool(self.ratio))) != 1:
            raise ValueError(
                "name one form: --factors plain, --factors pivoted or --dense; or --ratio"
            )
        return self
