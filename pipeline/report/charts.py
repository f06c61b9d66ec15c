"""Charts of tables: a heat map, stacked columns, bars. Each returns one SVG."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report.svg import Scale, drawing, line, tag, text, tick
from pipeline.report.wording import figure

SHADES = 8
_LETTER = 6.4  # pixels per character of a label
_WIDEST = 1040
_ROW = 26
_HEAD = 34
_LEGEND = 400  # pixels of the legend of shades


class Cell(NamedTuple):
    """One field of a heat map: `share` of the darkest shade, 0 to 1; `special` is hatched."""

    row: str
    column: int
    share: float
    text: str
    tip: str
    special: bool = False


class Bar(NamedTuple):
    """A horizontal bar."""

    label: str
    value: float
    text: str


def heat_map(
    rows: Sequence[str],
    columns: Sequence[int],
    cells: Sequence[Cell],
    title: str,
    label: str,
    legend: str = "",
) -> Markup:
    """Draw a field for every cell, with its text if there is room, and always with its tip.

    `legend` says what a share means.
    """
    left = _room(rows)
    widest_text = max((len(cell.text) for cell in cells), default=1) * _LETTER + 6
    wide = len(columns) * widest_text <= _WIDEST - left
    width = max(widest_text, 30.0) if wide else max((_WIDEST - left) / len(columns), 7.0)
    x = {column: left + at * width for at, column in enumerate(columns)}
    y = {row: _HEAD + at * _ROW for at, row in enumerate(rows)}
    drawn = [text(left, 12, title, "tick")]
    every = 1 if wide else 5
    drawn += [
        text(x[column] + width / 2, 28, str(column), "tick", "middle")
        for column in columns[::every]
    ]
    drawn += [text(left - 8, y[row] + _ROW / 2 + 4, row, "label", "end") for row in rows]
    for cell in cells:
        drawn.append(_field(cell, x[cell.column], y[cell.row], width, wide))
    right = left + max(len(columns) * width, len(title) * _LETTER)
    bottom = _HEAD + len(rows) * _ROW
    if legend:
        special = any(cell.special for cell in cells)
        drawn += _shades(left, bottom + 10, legend, special)
        right, bottom = max(right, left + _LEGEND), bottom + 26
    return drawing(right + 2, bottom + 2, label, drawn)


def _shades(x: float, y: float, legend: str, special: bool) -> list[Markup]:
    drawn = [
        tag("rect", x=x + 30 + at * 16, y=y, width=16, height=12, class_=f"f{at}")
        for at in range(SHADES)
    ]
    drawn.append(text(x, y + 10, "0 %", "tick"))
    drawn.append(text(x + 164, y + 10, f"100 % {legend}", "tick"))
    if special:
        at = x + 184 + _LETTER * len(f"100 % {legend}")
        drawn.append(tag("rect", x=at, y=y, width=16, height=12, class_="special"))
        drawn.append(text(at + 22, y + 10, "D: dense", "tick"))
    return drawn


def _field(cell: Cell, x: float, y: float, width: float, wide: bool) -> Markup:
    shade = min(int(max(cell.share, 0.0) * SHADES), SHADES - 1)
    place = {"x": x, "y": y, "width": width - 1, "height": float(_ROW - 1)}
    drawn = [tag("title", cell.tip), tag("rect", **place, class_=f"f{shade}", rx=2)]
    if cell.special:
        drawn.append(tag("rect", **place, class_="special", rx=2))
    if wide:
        at = (x + (width - 1) / 2, y + _ROW / 2 + 3.5)
        kind = "on-special" if cell.special else f"on{shade}"
        drawn.append(text(*at, cell.text, f"field {kind}", "middle"))
    return tag("g", *drawn, class_="cell")


def columns(
    values: Mapping[int, Mapping[str, float]], groups: Sequence[str], title: str, label: str
) -> Markup:
    """Draw a column per layer, stacked by group; values must be at least 0."""
    totals = [sum(parts.values()) for parts in values.values()]
    left, bottom, top = 52.0, 210.0, 44.0
    step = min(max(980 / max(len(values), 1), 9.0), 40.0)
    right = max(left + step * len(values), 320.0)
    y = Scale(0.0, max([*totals, 0.0]) or 1.0, bottom, top)
    drawn = [line(left, y(at), right, y(at), "grid") for at in y.ticks()]
    drawn += [text(left - 5, y(at) + 4, tick(y, at), "tick", "end") for at in y.ticks()]
    drawn += [text(2, 12, title, "tick"), *_legend(groups, left)]
    every = 1 if step >= 20 else 5
    for at, (layer, parts) in enumerate(values.items()):
        x = left + at * step
        if at % every == 0:
            drawn.append(text(x + step / 2, bottom + 16, str(layer), "tick", "middle"))
        drawn.append(_column(x, step, y, layer, parts, groups))
    drawn.append(text(right, bottom + 32, "layer", "tick", "end"))
    return drawing(right + 4, bottom + 38, label, drawn)


def _column(
    x: float, step: float, y: Scale, layer: int, parts: Mapping[str, float], groups: Sequence[str]
) -> Markup:
    below, drawn = 0.0, []
    named = ", ".join(f"{group} {figure(parts[group])}" for group in groups if group in parts)
    for at, group in enumerate(groups):
        value = parts.get(group, 0.0)
        top, height = y(below + value), y(below) - y(below + value)
        place = {"x": x + 1, "y": top, "width": step - 2, "height": height}
        drawn.append(tag("rect", **place, class_=f"group{at % 4}"))
        below += value
    return tag("g", tag("title", f"layer {layer}: {named}"), *drawn, class_="column")


def _legend(groups: Sequence[str], x: float) -> list[Markup]:
    drawn = []
    for at, group in enumerate(groups):
        drawn.append(tag("rect", x=x, y=22, width=12, height=12, class_=f"group{at % 4}"))
        drawn.append(text(x + 17, 32, group, "tick"))
        x += 32 + _LETTER * len(group)
    return drawn


def bars(rows: Sequence[Bar], title: str, label: str) -> Markup:
    left = _room([bar.label for bar in rows])
    x = Scale(0.0, max((bar.value for bar in rows), default=0.0) or 1.0, left, left + 200)
    drawn = [text(left, 12, title, "tick")]
    for at, bar in enumerate(rows):
        y = 20.0 + at * 22
        drawn.append(text(left - 8, y + 13, bar.label, "label", "end"))
        width = max(x(bar.value) - left, 1.0)
        drawn.append(tag("rect", x=left, y=y, width=width, height=16, class_="group0", rx=2))
        drawn.append(text(left + width + 6, y + 13, bar.text, "label"))
    return drawing(left + 280, 24.0 + len(rows) * 22, label, drawn)


def _room(labels: Sequence[str]) -> float:
    """Pixels needed for labels on the left."""
    return 14 + _LETTER * max(map(len, labels), default=0)
