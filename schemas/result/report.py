"""report.json: what a report shows besides compression.json and evaluation.json."""

from pydantic import Field, FiniteFloat

from schemas.base import Schema


class StageTime(Schema):
    """A stage of a run: its wall time, and the share of it that each worker was busy."""

    name: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    busy: tuple[FiniteFloat, ...] = ()


class SpectrumSample(Schema):
    """Some eigenvalues of a matrix, among them the last one kept and the first one dropped.

    `values` are at the ranks `ranks` (the largest has rank 1); there are `size` in all.
    """

    name: str
    size: int
    ranks: tuple[int, ...]
    values: tuple[float, ...]


class ReportFacts(Schema):
    """report.json: with it, a report can be rendered again from the checkpoint alone.

    `command` asks for the same run, argument by argument. `started` and `written` are in ISO 8601;
    stages and warnings cover the time from `started` until this checkpoint.
    """

    output: str
    command: tuple[str, ...]
    versions: dict[str, str]
    started: str
    written: str
    workers: int
    layout: str
    stages: tuple[StageTime, ...]
    warnings: tuple[str, ...]
    spectra: tuple[SpectrumSample, ...]
