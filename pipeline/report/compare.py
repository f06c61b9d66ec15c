"""Several checkpoints side by side: a page, and a table for the terminal."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from rich.table import Table as TerminalTable
from rich.text import Text

from pipeline.report import plots, wording
from pipeline.report.figures import Figure, Table, base_and_made
from pipeline.report.page import model_name, render_page
from pipeline.report.read import Reported
from schemas.location import Location, absolute
from schemas.printable import printable
from schemas.request.methods import METHODS, TITLES
from workers.checkpoint.names import REPORT_PAGE

_HEAD = ("checkpoint", "base", "method", "ratio", "removed", "parameters", "weights")
_EVALUATED = ("perplexity", "increase", "KL, nats", "tokens/s")


def comparison(runs: Sequence[Reported], page: Path) -> str:
    """Render the comparison that will be written to `page`."""
    models = list(dict.fromkeys(model_name(run.compression) for run in runs))
    of, names = models[0] if len(models) == 1 else f"{len(models)} models", _names(runs)
    return render_page(
        "comparison.html.j2",
        headline=f"{len(runs)} runs of {of}",
        head=(*_HEAD, *_EVALUATED),
        rows=[
            (_link(run.place, page), (name, *_fields(run)))
            for name, run in zip(names, runs, strict=True)
        ],
        curve=_curve(runs, names),
        texts=sorted(_names_of_texts(runs).values()),
        missing=[str(run.place) for run in runs if not base_and_made(run.evaluation)],
    )


def terminal_table(runs: Sequence[Reported]) -> TerminalTable:
    """Return the same table for a terminal, a column per run."""
    table = TerminalTable(_HEAD[0])
    for name in _names(runs):
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    heads = (*_HEAD, *_EVALUATED)[1:]
    for name, *row in zip(heads, *map(_fields, runs), strict=True):
        table.add_row(name, *(Text(printable(field)) for field in row))
    return table


def method_of(run: Reported) -> str:
    """Return the title of the preset, or its three parts if one of them differs."""
    asked = run.compression.method
    parts = {name: asked.get(name, "") for name in ("truncation", "allocation", "factors")}
    for name, preset in METHODS.items():
        if preset == parts:
            return TITLES[name]
    return " + ".join(parts.values())


def _names(runs: Sequence[Reported]) -> list[str]:
    """Return the ends of the runs' places that tell them apart, with as few parts as can do it."""
    parts = [str(absolute(run.place)).split("/") for run in runs]
    names: list[str] = []
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return names


def _fields(run: Reported) -> tuple[str, ...]:
    done = run.compression
    sizes = wording.change(done.bytes_before, done.bytes_after)
    counts = wording.change(done.parameters_before, done.parameters_after)
    fields = (
        model_name(done),
        method_of(run),
        f"{done.ratio:g}",
        wording.share(done.removed, 2),
        f"{wording.short(done.parameters_after)} ({counts})",
        f"{wording.size(done.bytes_after)} ({sizes})",
    )
    if (models := base_and_made(run.evaluation)) is None:
        return (*fields, *[wording.figure(None)] * len(_EVALUATED))
    base, made = models
    return (
        *fields,
        f"{base.perplexity:.2f} → {made.perplexity:.2f}",
        wording.change(base.perplexity, made.perplexity),
        wording.figure(made.kl),
        f"{made.tokens_per_second:,.0f}",
    )


def _curve(runs: Sequence[Reported], names: Sequence[str]) -> Figure | None:
    """Plot perplexity against the share removed, a line for each base, method and text."""
    lines, texts = defaultdict(list), _names_of_texts(runs)
    for place, run in zip(names, runs, strict=True):
        if models := base_and_made(run.evaluation):
            key = (model_name(run.compression), method_of(run), texts[_text(run)])
            lines[key].append((run.compression.removed, *models, place))
    if not lines:
        return None
    several_texts = len({text for *_, text in lines}) > 1
    several_models = len({name for name, *_ in lines}) > 1
    series: list[plots.Series] = []
    rows = []
    for (model, method, on), found in lines.items():
        named = (model if several_models else "", method, on if several_texts else "")
        name = ", ".join(filter(None, named))
        found.sort(key=lambda one: one[0])
        base = found[0][1].perplexity
        points = [plots.Point(0.0, base, f"{model}: {base:.2f}")]
        points += [
            plots.Point(100 * removed, made.perplexity, f"{place}: {made.perplexity:.2f}")
            for removed, _, made, place in found
        ]
        labels = ["" if series and not point.x else f"{point.y:.2f}" for point in points]
        series.append(plots.Series(name, points, labels))
        rows += [(name, wording.share(point.x / 100), f"{point.y:.2f}") for point in points]
    gist = plots.said(series)
    drawing = plots.curves(series, "parameters removed, per cent", "perplexity", f"Curve. {gist}")
    table = Table("Perplexity by what was removed", ("line", "removed", "perplexity"), rows)
    return Figure("curve", gist, [drawing], table)


def _text(run: Reported) -> tuple[str, str]:
    """Describe what a perplexity was measured on; those of different texts are not comparable. A
    file that has changed is another text, which its SHA-256 tells.
    """
    found = run.evaluation
    if found is None:
        return "", ""
    windows = f"{found.models[0].windows} × {found.sequence_length} tokens"
    return f"{found.text}, {windows}, {found.dtype}", found.text_sha256 or ""


def _names_of_texts(runs: Sequence[Reported]) -> dict[tuple[str, str], str]:
    """Return names of the texts: what describes them, with a checksum where that is not enough."""
    found = {_text(run) for run in runs if run.evaluation}
    alike = Counter(said for said, _ in found)
    return {
        (said, sha256): said if alike[said] == 1 else f"{said}, SHA-256 {sha256[:8] or 'unknown'}"
        for said, sha256 in found
    }


def _link(place: Location, page: Path) -> str:
    """Return a relative link to the report of a checkpoint in a folder; none for a URL."""
    if not isinstance(place, Path):
        return ""
    return quote(os.fsencode(os.path.relpath(place / REPORT_PAGE, page.parent)))
