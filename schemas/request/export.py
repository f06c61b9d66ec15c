"""The configuration of `svdllm export`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.location import LocalPath
from schemas.model.spec import Factors
from schemas.request.settings import Flag


class ExportConfig(Request):
    """Another form of a finished checkpoint: the same W', stored otherwise."""

    checkpoint: Annotated[str, Flag(positional=True)] = Field(
        description="A finished checkpoint of this program: a folder or a hub id"
    )
    output: LocalPath = Field(description="Folder of the new checkpoint")
    factors: Factors | None = Field(None, description="Store every cut matrix this way")
    dense: bool = Field(
        False,
        description="Multiply the factors out: a model of the base's own architecture and size",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.dense == (self.factors is not None):
            raise ValueError("name one form: --factors plain, --factors pivoted or --dense")
        return self
