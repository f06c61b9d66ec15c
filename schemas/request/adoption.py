"""The configuration of `svdllm recover`."""

from typing import Annotated

from pydantic import Field

from schemas.base import Request
from schemas.location import Location
from schemas.request.groups import ClusterConfig, DType, EvaluationTextConfig
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from schemas.request.settings import Flag

OF_CHECKPOINT = "that of the checkpoint"


class AdoptionConfig(Request):
    """Training of the factors of a finished checkpoint, against the base that it was made from.

    Ratio, method, targets and so on are those of the checkpoint. Recovery is asked for unless
    refinement alone is.
    """

    checkpoint: Annotated[Location, Flag(positional=True)] = Field(
        description="A finished checkpoint of this program: a folder or a URL"
    )
    base: str = Field(
        min_length=1,
        description="The base that it was made from: a local folder, a hub id or a URL",
    )
    output: Location = Field(description="Folder or URL of the trained checkpoint")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id")
    run_dir: Annotated[Location | None, Flag(unset="OUTPUT.run, none for a URL")] = Field(
        None, description="Folder or URL of the run"
    )
    seed: Annotated[int | None, Flag(unset=OF_CHECKPOINT)] = Field(
        None, ge=0, lt=2**32, description="Choice of windows"
    )
    dtype: DType = Field("auto", description="Compute type, as for compress")
    refinement: RefinementConfig = RefinementConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    evaluation: EvaluationTextConfig = EvaluationTextConfig()
    cluster: ClusterConfig = ClusterConfig()
