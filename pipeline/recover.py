"""Training of the factors of a finished checkpoint: a run that adopts them, and calibrates not."""

from pipeline.compress import compress
from pipeline.progress import Progress
from pipeline.request.adopt import adopting
from schemas.request.adoption import AdoptionConfig
from schemas.result.manifest import RunResult


def recover(
    request: AdoptionConfig, progress: Progress | None = None, fresh: bool = False
) -> RunResult:
    """Train the factors of a finished checkpoint against its base; finished work is not redone.

    Raises as `compress` does, and CheckpointError if it is not a checkpoint of this program.
    """
    return compress(adopting(request), progress, fresh)
