"""A night and the catalogue on a terminal."""

import math

from pydantic_core import to_json
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.nightly import catalog
from pipeline.nightly.ledger import Ledger, label, latest_of, ledger_of
from pipeline.nightly.night import Night
from pipeline.report.wording import count, plain_size
from schemas.errors import ConfigError
from schemas.location import Location
from schemas.printable import printable
from schemas.request.nightly import CatalogRow, Latest

_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"published": "green", "rejected": "yellow", "failed": "red", "quarantined": "bold red"}


def night_table(night: Night) -> RenderableType:
    """Show the outcomes of tonight's checkpoints, and which ones wait."""
    shown = [row for row in night.rows if row.event != "started"]
    lines = [f"{name}: not complete yet: {why}" for name, why in night.incomplete.items()]
    lines += [
        f"{name}: in quarantine ({why}); --retry {name} tries it again"
        for name, why in night.quarantined.items()
    ]
    if night.waiting:
        lines.append(f"{night.waiting} left for another night")
    if not shown and not night.waiting:
        lines.append("nothing to do")
    return Group(*([_events(shown, "Tonight")] if shown else []), *map(_line, lines))


def catalog_table(prefix: Location) -> RenderableType:
    """Show the pointer, every event, the trend of each ratio, and the quarantined checkpoints.

    Raises ConfigError if there is no catalogue.
    """
    rows, ledger = _read(prefix)
    quarantined = [
        f"{entry.name}: in quarantine after {count(entry.attempts, 'attempt')}: {entry.error}"
        for entry in ledger.values()
        if entry.quarantined
    ]
    return Group(
        _pointer(latest_of(ledger)),
        _events(_with_interrupted(rows), "History"),
        *_trends(ledger),
        *map(_line, quarantined),
    )


def catalog_json(prefix: Location) -> str:
    """Return the pointer and every row as JSON, which has no infinities and NaN: they are null."""
    rows, ledger = _read(prefix)
    found = {"latest": latest_of(ledger), "rows": rows}
    return to_json(found, inf_nan_mode="null").decode()


def sparkline(values: list[float]) -> str:
    """Draw a bar for every value, scaled from the smallest to the largest finite value."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(
        _BARS[round((value - low) / step)] if math.isfinite(value) else "!" for value in values
    )


def _read(prefix: Location) -> tuple[list[CatalogRow], Ledger]:
    if not (rows := catalog.read(prefix)):
        raise ConfigError(
            f"{prefix}: no catalogue there; name the --output of a `svdllm nightly` that has tried "
            "a checkpoint"
        )
    return rows, ledger_of(rows)


def _pointer(latest: Latest) -> Table:
    table = _table("Latest", "ratio", "checkpoint", "perplexity")
    table.add_column("path", overflow="fold")
    for ratio, at in latest.ratios.items():
        perplexity = _perplexity(at.base_perplexity, at.perplexity)
        table.add_row(ratio, _line(at.name), perplexity, _line(at.path))
    return table


def _with_interrupted(rows: list[CatalogRow]) -> list[CatalogRow]:
    """Show a start only if nothing followed it: that attempt was killed, or is under way."""
    shown: list[CatalogRow | None] = []
    started: dict[str, int] = {}
    for row in rows:
        if row.event == "started":
            started[row.key] = len(shown)
            row = row.model_copy(update={"detail": "no outcome: killed, or under way"})
        elif row.event in ("published", "rejected", "failed", "stopped") and row.key in started:
            shown[started.pop(row.key)] = None
        shown.append(row)
    return [row for row in shown if row is not None]


def _events(rows: list[CatalogRow], title: str) -> Table:
    table = _table(title, "", "checkpoint", "ratio", "")
    for heading in ("perplexity", "KL", "size"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(
            str(row.number),
            _line(row.name),
            "" if row.ratio is None else label(row.ratio),
            Text(row.event, _STYLES.get(row.event, "")),
            _perplexity(row.base_perplexity, row.perplexity),
            "" if row.kl is None else f"{row.kl:.4f}",
            _size(row.bytes),
            _line(row.detail),
        )
    return table


def _trends(ledger: Ledger) -> list[RenderableType]:
    """One table per ratio, from the oldest checkpoint to the newest, each under its newest name."""
    found: dict[str, list[tuple[str, str, CatalogRow]]] = {}
    for entry in ledger.values():
        for at, row in entry.outcomes.items():
            found.setdefault(at, []).append((entry.order, entry.name, row))
    return [_trend(at, sorted(found[at], key=lambda one: one[0])) for at in sorted(found)]


def _trend(at: str, rows: list[tuple[str, str, CatalogRow]]) -> Table:
    increases = [row.increase for _, _, row in rows if row.increase is not None]
    line = f": {sparkline(increases)}" if increases else ""
    table = _table(f"Increase of perplexity at ratio {at}{line}", "checkpoint")
    for heading in ("base", "compressed", "increase", "KL", "size", ""):
        table.add_column(heading, justify="right")
    for _, name, row in rows:
        table.add_row(
            _line(name),
            _number(row.base_perplexity),
            _number(row.perplexity),
            "" if row.increase is None else f"{row.increase:+.2%}",
            _number(row.kl),
            _size(row.bytes),
            Text(row.event, _STYLES.get(row.event, "")),
        )
    return table


def _table(title: str, *headings: str) -> Table:
    """A table that fits 80 columns (as in a log) and does not shorten names."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False)
    table.padding = (0, 1, 0, 0)
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="fold")
    return table


def _perplexity(base: float | None, compressed: float | None) -> str:
    if base is None or compressed is None:
        return ""
    return f"{compressed:.2f} ({compressed / base - 1:+.1%})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _size(value: int | None) -> str:
    return "" if value is None else plain_size(value)


def _line(text: str) -> Text:
    return Text(printable(text))  # Text: a name is not markup
