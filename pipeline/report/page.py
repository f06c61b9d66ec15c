"""report.html, made only from the files beside it in a checkpoint."""

import base64
import functools
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import generation, wording
from pipeline.report.budget import budget
from pipeline.report.figures import (
    Figure,
    Matrices,
    Table,
    base_and_made,
    kept,
    ranks,
    spectra,
    stages,
)
from pipeline.report.losses import layers, losses
from pipeline.report.notes import notes_of
from pipeline.report.recovery import recovery
from schemas.printable import escaped, one_line
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from schemas.result.manifest import Compression
from schemas.result.report import ReportFacts

_TEMPLATES = Path(__file__).parent / "templates"


class Tile(NamedTuple):
    """A quantity before and after; `after` is empty if it was not measured."""

    name: str
    before: str
    after: str
    change: str


def render_page(template: str, **values: object) -> str:
    """Render a template: one style sheet, no script, and nothing loaded from elsewhere.

    Whatever a template prints is made `one_line` and escaped, except markup made here.
    """
    css = (_TEMPLATES / "report.css.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(css=Markup(css), css_hash=f"sha256-{digest}", **values)


@functools.cache  # of templates that are parsed
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.globals |= {"wording": wording, "lines": _lines}
    return environment


def render_report(
    compression: Compression, evaluation: EvaluationReport | None, facts: ReportFacts
) -> str:
    matrices = Matrices(compression.matrices)
    figures: dict[str, Figure] = {
        figure.name: figure
        for figure in (
            ranks(matrices),
            *([spectra(matrices, facts.spectra)] if facts.spectra else []),
            losses(matrices, compression, evaluation),
            layers(matrices, compression),
            stages(facts),
        )
    }
    if compression.budget and (found := budget(compression.budget, compression.ratio)):
        figures["budget"] = found
    if compression.recovery is not None:
        figures["recovery"] = recovery(compression.recovery)
    return render_page(
        "report.html.j2",
        name=model_name(compression),
        headline=headline(compression, evaluation),
        c=compression,
        e=evaluation,
        f=facts,
        tiles=_tiles(compression, evaluation),
        figures=figures,
        before_after=_before_after(compression, evaluation),
        texts=generation.texts(evaluation),
        all_matrices=_all_matrices(matrices),
        counts=Counter(matrix.encoding for matrix in compression.matrices),
        notes=notes_of(compression, facts),
        command=_command(facts.command),
    )


def model_name(compression: Compression) -> str:
    """Return the last part of the base's folder, hub id or URL."""
    return Path(compression.model).name or compression.model


def headline(compression: Compression, evaluation: EvaluationReport | None) -> str:
    """Say what became smaller, and what that cost."""
    sizes = f"{_fromto(compression.bytes_before, compression.bytes_after)} of weights"
    if (models := base_and_made(evaluation)) is None:
        return sizes
    before, after = (f"{model.perplexity:.2f}" for model in models)
    return f"perplexity {before}{wording.TO}{after}, {sizes}"


def _fromto(before: float, after: float) -> str:
    """Format two sizes, with the unit once if both have the same."""
    one, other = wording.size(before), wording.size(after)
    number, space, unit = one.partition("\N{NO-BREAK SPACE}")
    start = number if other.endswith(space + unit) else one
    return f"{start}{wording.TO}{other}"


def _tiles(compression: Compression, evaluation: EvaluationReport | None) -> list[Tile]:
    def tile(name: str, before: float, after: float, form: Callable[[float], str]) -> Tile:
        return Tile(name, form(before), form(after), wording.change(before, after))

    c = compression
    tiles = [
        tile("Parameters", c.parameters_before, c.parameters_after, wording.short),
        tile("Weights on disk", c.bytes_before, c.bytes_after, wording.size),
    ]
    if (models := base_and_made(evaluation)) is None:
        return [*tiles, Tile("Perplexity", "", "", ""), Tile("Speed", "", "", "")]
    base, made = models
    speeds = base.tokens_per_second, made.tokens_per_second
    return [
        *tiles,
        tile("Perplexity", base.perplexity, made.perplexity, "{:.2f}".format),
        tile("Speed, tokens/s", *speeds, "{:,.0f}".format),
    ]


def _before_after(compression: Compression, evaluation: EvaluationReport | None) -> Table:
    c = compression
    counted = {
        "parameters of the targeted matrices": (c.targeted_before, c.targeted_after),
        "parameters of the model": (c.parameters_before, c.parameters_after),
        "bytes of weights": (c.bytes_before, c.bytes_after),
    }
    rows = [
        (name, f"{before:,}", f"{after:,}", wording.change(before, after))
        for name, (before, after) in counted.items()
    ]
    if models := base_and_made(evaluation):
        rows += _evaluated(*models)
        rows += [(*row, "") for row in generation.compared(evaluation)]
    return Table("In full", ("", "before", "after", "change"), rows)


def _evaluated(base: ModelEvaluation, made: ModelEvaluation) -> list[tuple[str, str, str, str]]:
    pairs = {
        "perplexity": (base.perplexity, made.perplexity),
        "mean loss, nats a token": (base.mean_nll, made.mean_nll),
        "tokens a second": (base.tokens_per_second, made.tokens_per_second),
    }
    rows = [
        (name, wording.figure(before, 4), wording.figure(after, 4), wording.change(before, after))
        for name, (before, after) in pairs.items()
    ]
    if made.kl is not None:
        rows.append(("KL from the base, nats a token", "", wording.figure(made.kl), ""))
    return rows


def _all_matrices(matrices: Matrices) -> Table:
    rows = [
        (
            m.name,
            f"{m.shape[0]:,} × {m.shape[1]:,}",
            m.encoding,
            "full" if m.rank is None else f"{m.rank:,}",
            wording.share(kept(m)),
            f"{m.parameters:,}",
            wording.figure(m.predicted_loss),
            wording.figure(m.achieved_loss),
            wording.figure(m.nats),
        )
        for m in matrices.at.values()
    ]
    head = ("matrix", "shape", "stored as", "rank", "of full", "parameters")
    losses = ("predicted loss", "measured loss", "predicted nats a token")
    return Table("Every matrix", (*head, *losses), rows)


def _command(words: Sequence[str]) -> str:
    """Format a command for a shell, one option per line."""
    quoted = [shlex.quote(one_line(word)) for word in words]
    return " ".join(f"\\\n  {word}" if word.startswith("--") else word for word in quoted)


def _lines(text: str) -> Markup:
    """Escape a text of several lines, such as a model's sample."""
    return Markup("\n").join(map(escaped, text.split("\n")))


def _finalize(value: object) -> object:
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value
