"""Reading what checkpoints and run directories hold for a report."""

import shlex
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from schemas.errors import ConfigError
from schemas.location import Location, locate
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Compression
from schemas.result.report import ReportFacts
from schemas.run.record import RunRecord
from workers.checkpoint.names import COMPRESSION, EVALUATION, REPORT, SUCCESS
from workers.checkpoint.strict_json import parse
from workers.storage.keys import RUN_RECORD
from workers.storage.places import exists, place_of, read_bytes

M = TypeVar("M", bound=BaseModel)


class Reported(NamedTuple):
    """A checkpoint's own figures, and its place."""

    place: Location
    compression: Compression
    evaluation: EvaluationReport | None
    facts: ReportFacts


def read_reported(names: list[str]) -> list[Reported]:
    """Read checkpoints; a run directory stands for all it has published. Folders or URLs.

    Raises ConfigError if a name is neither, or lacks the files that a report is made of.
    """
    return [_read(place) for name in names for place in _checkpoints(name)]


def _checkpoints(name: str) -> list[Location]:
    place = place_of(name)
    if not exists(place / RUN_RECORD):
        return [place]
    record = _parse(place / RUN_RECORD, RunRecord)
    found = [locate(output) for output in record.outputs]
    published = [output for output in found if exists(output / SUCCESS)]
    if not published:
        raise ConfigError(
            f"{place}: no checkpoint at {' or '.join(map(str, found))}; `svdllm status "
            f"{shlex.quote(name)}` says how far the run is; if it was moved, name the checkpoint"
        )
    return published


def _read(place: Location) -> Reported:
    evaluation = place / EVALUATION
    return Reported(
        place,
        _parse(place / COMPRESSION, Compression),
        _parse(evaluation, EvaluationReport) if exists(evaluation) else None,
        _parse(place / REPORT, ReportFacts),
    )


def _parse(place: Location, schema: type[M]) -> M:
    try:
        content = read_bytes(place)
        parse(content)  # refuses NaN and Infinity, which no run writes and no plot can show
        return schema.model_validate_json(content)
    except OSError as error:
        raise ConfigError(
            f"{place}: {error.strerror or 'not there'}; a report is made from a checkpoint that "
            "`svdllm compress` wrote, or from its run directory"
        ) from error
    except ValueError:  # pydantic's ValidationError, too
        raise ConfigError(f"{place}: damaged, or written by another version") from None
