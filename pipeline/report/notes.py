"""What did not go as planned: fallbacks, matrices left uncut, thin statistics, warnings."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from schemas.result.manifest import Compression
from schemas.result.report import ReportFacts

FALLBACK = "fallback: "  # how a warning of one begins


class Note(NamedTuple):
    """One event, and the matrices that it happened to; none means the whole run."""

    kind: str
    text: str
    matrices: tuple[str, ...] = ()


def notes_of(compression: Compression, facts: ReportFacts) -> list[Note]:
    """Return every fallback, remark and warning, each text once.

    A worker's fallback is a warning of the run as soon as it happens, and one of the checkpoint if
    moments that it touched are in it.
    """
    notes = [Note("could not be cut", why, (name,)) for name, why in compression.given_up.items()]
    notes += [Note("fallback", text) for text in compression.fallbacks]
    notes += notes_of_matrices(compression)
    told = {f"{FALLBACK}{text}" for text in compression.fallbacks}
    warnings = [text for text in dict.fromkeys(facts.warnings) if text not in told]
    return notes + [Note("warning", text) for text in warnings]


def notes_of_matrices(compression: Compression) -> list[Note]:
    """Return the fallbacks and remarks of all matrices, each text once."""
    rows = compression.matrices
    return [
        *_grouped("fallback", ((note, row.name) for row in rows for note in row.fallbacks)),
        *_grouped("thin statistics", ((note, row.name) for row in rows for note in row.remarks)),
    ]


def _grouped(kind: str, found: Iterable[tuple[str, str]]) -> list[Note]:
    names = defaultdict(list)
    for text, name in found:
        names[text].append(name)
    return [Note(kind, text, tuple(where)) for text, where in names.items()]
