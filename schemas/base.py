"""What every schema is."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
