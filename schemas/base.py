"""What every schema is."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Schema):
    """What a user asks for. Its numbers are finite: the JSON that records it has no others."""

    model_config = ConfigDict(allow_inf_nan=False)
