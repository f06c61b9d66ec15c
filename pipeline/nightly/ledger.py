"""What the catalogue says of each content, each output and the pointer: a fold over its rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.errors import ConfigError
from schemas.request.nightly import CatalogRow, Event, Latest, Pointed


def label(ratio: float) -> str:
    """Format a ratio as in folder names and pointers."""
    return f"{ratio:.2f}"


@dataclass
class Entry:
    """One content under one method: the names it had, and its outcomes by ratio.

    `attempts` counts those since the last success or retry; an attempt that was killed counts, one
    that was told to stop does not.
    """

    folder: str
    names: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, CatalogRow] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    attempts: int = 0
    failed: bool = False
    quarantined: bool = False
    error: str = ""

    @property
    def order(self) -> str:
        """The place of its newest name in the order of the source."""
        return max(self.names.values())

    @property
    def name(self) -> str:
        """The newest of its names."""
        return max(self.names, key=lambda name: (self.names[name], name))

    def left(self, ratios: Iterable[float]) -> tuple[float, ...]:
        """Return the ratios at which nothing was published or rejected yet."""
        return tuple(ratio for ratio in ratios if label(ratio) not in self.outcomes)

    def require_folders(self, ratios: Iterable[float]) -> None:
        """Raises ConfigError if another ratio has the folder that one of these would have."""
        for ratio in ratios:
            row = self.outcomes.get(label(ratio))
            if row and row.ratio != ratio and label(ratio) not in self.removed:
                raise ConfigError(
                    f"ratio {ratio}: {row.ratio} is in the folder ratio-{label(ratio)} of "
                    f"{self.folder}; name another --output, or ratios that differ from it by 0.01"
                )

    def take(self, row: CatalogRow) -> None:
        self.names[row.name] = row.order
        match row.event:
            case "started":
                self.attempts += 1
                self.failed = False
            case "published" | "rejected":
                self.outcomes[label(row.ratio or 0.0)] = row
                self.removed.discard(label(row.ratio or 0.0))
                self.attempts, self.error = 0, ""
            case "failed":
                self.failed, self.error = True, row.detail
            case "stopped":
                self.attempts, self.failed = self.attempts - 1, bool(self.error)
            case "quarantined":
                self.quarantined, self.error = True, row.detail
            case "retry":
                self.outcomes = {
                    at: one for at, one in self.outcomes.items() if one.event == "published"
                }
                self.attempts, self.failed, self.quarantined, self.error = 0, False, False, ""
            case "removed":
                self.removed.add(label(row.ratio or 0.0))
            case "duplicate":
                pass


Ledger = dict[str, Entry]


def ledger_of(rows: Iterable[CatalogRow]) -> Ledger:
    """Return every content in the catalogue, by its key."""
    ledger: Ledger = {}
    for row in rows:
        follow(ledger, row)
    return ledger


def follow(ledger: Ledger, row: CatalogRow) -> None:
    ledger.setdefault(row.key, Entry(row.folder)).take(row)


def standing(ledger: Ledger, event: Event) -> dict[str, list[tuple[Entry, CatalogRow]]]:
    """Return the outputs that were last published, or rejected, and still exist, by ratio, newest
    in the source first.
    """
    found: dict[str, list[tuple[Entry, CatalogRow]]] = {}
    for entry in ledger.values():
        for at, row in entry.outcomes.items():
            if row.event == event and at not in entry.removed:
                found.setdefault(at, []).append((entry, row))
    for outputs in found.values():
        outputs.sort(key=lambda pair: (pair[0].order, pair[1].number), reverse=True)
    return dict(sorted(found.items()))


def latest_of(ledger: Ledger) -> Latest:
    """Derive the pointer from the catalogue: at each ratio the newest accepted output."""
    return Latest(
        ratios={
            at: Pointed(
                path=row.path or "",
                name=entry.name,
                order=entry.order,
                key=row.key,
                base_perplexity=row.base_perplexity,
                perplexity=row.perplexity,
                kl=row.kl,
            )
            for at, ((entry, row), *_) in standing(ledger, "published").items()
        }
    )


def beyond(ledger: Ledger, keep: int | None) -> list[CatalogRow]:
    """Return the outputs that a retention of `keep` removes: older published and rejected ones."""
    if keep is None:
        return []
    events: tuple[Event, ...] = ("published", "rejected")
    return [
        row
        for event in events
        for outputs in standing(ledger, event).values()
        for _, row in outputs[keep:]
    ]
