"""What `svdllm export` wrote."""

from pathlib import Path

from pydantic import Field

from schemas.base import Schema


class Exported(Schema):
    """A checkpoint in another form: its folder, parameters, bytes of weights, and why matrices kept
    the form that they had, by their names. `narrow` tells of dense MLPs that lack neurons whether
    they are narrower; if not, zeros are in the place of these neurons.
    """

    path: Path
    parameters: int
    nbytes: int
    narrow: bool | None = None
    kept: dict[str, str] = Field(default_factory=dict)
