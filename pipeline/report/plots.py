"""Plots of one quantity against another: spectra, a scatter, curves. Each returns one SVG."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report.svg import Scale, around, axes, drawing, line, tag, text
from pipeline.report.wording import PER_CENT

_MARKS = 4  # shapes of points
_DEPTHS = 5  # shades of lines
_STEEP = 6  # ratio of the largest to the least value above which the axis is logarithmic
_COLUMNS = 4  # of a legend
_LEGEND_ROW = 15.0


class Point(NamedTuple):
    """A point and its tip."""

    x: float
    y: float
    tip: str


class Spectrum(NamedTuple):
    """Ranks and eigenvalues, the last rank that is kept (None: all), and `depth` from 0 to 1."""

    points: Sequence[tuple[int, float]]
    cut: int | None
    depth: float
    tip: str


class Series(NamedTuple):
    """Points that belong together; `labels` are used by `curves` only."""

    name: str
    points: Sequence[Point]
    labels: Sequence[str] = ()


def spectra(curves: Sequence[Spectrum], floor: float, label: str) -> Markup:
    """Eigenvalues relative to the largest against the rank, with a dot at each cut."""
    largest = max((points[-1][0] for points, *_ in curves if points), default=1)
    x = Scale(0, largest, 46, 312)
    y = Scale(floor, 1, 196, 22, logarithmic=True)
    drawn = axes(x, y, "rank", "eigenvalue / largest")
    dots = []
    for curve in curves:
        if not curve.points or curve.points[0][1] <= 0:
            continue
        top = curve.points[0][1]
        shade = min(int(curve.depth * _DEPTHS), _DEPTHS - 1)
        path = " ".join(f"{x(at):.0f},{y(value / top):.0f}" for at, value in curve.points)
        shape = tag("polyline", tag("title", curve.tip), points=path, class_=f"spectrum d{shade}")
        drawn.append(shape)
        value = dict(curve.points).get(curve.cut or 0)
        if curve.cut is not None and value is not None:
            at = {"cx": x(curve.cut), "cy": y(value / top), "r": 2.6}
            dots.append(tag("circle", tag("title", curve.tip), **at, class_="cut"))
    return drawing(320, 230, label, [*drawn, *dots])


def scatter(series: Sequence[Series], x_title: str, y_title: str, label: str) -> Markup:
    """Plot points of several kinds on two logarithmic scales, with the line of equal values."""
    values = [value for one in series for point in one.points for value in (point.x, point.y)]
    top = 32 + _legend_height(series)
    x = around(values, logarithmic=True, start=46, end=352)
    y = around(values, logarithmic=True, start=top + 260, end=top)
    drawn = [*axes(x, y, x_title, y_title), line(x.start, y.start, x.end, y.end, "equal")]
    for at, one in enumerate(series):
        shown = [point for point in one.points if point.x > 0 and point.y > 0]
        drawn += [_mark(at, x(point.x), y(point.y), point.tip) for point in shown]
    return drawing(360, top + 296, label, [*drawn, *_legend([one.name for one in series])])


def curves(series: Sequence[Series], x_title: str, y_title: str, label: str) -> Markup:
    """Draw a line through the points of every series, each with its label."""
    points = [point for one in series for point in one.points]
    top = 32 + _legend_height(series, columns=1)
    x = around([0.0, *(point.x for point in points)], logarithmic=False, start=44, end=430)
    heights = [point.y for point in points]
    steep = max(heights, default=0.0) > _STEEP * min(heights, default=0.0) > 0
    y = around(heights, steep, start=top + 230, end=top)
    drawn, names = axes(x, y, x_title, y_title), []
    for at, one in enumerate(series):
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in one.points)
        drawn.append(tag("polyline", points=path, class_=f"series s{at % _MARKS}"))
        for point, name in zip(one.points, one.labels, strict=True):
            drawn.append(_mark(at, x(point.x), y(point.y), point.tip))
            right, down = 9 if x(point.x) < 380 else -9, 16 if at % 2 else -7
            anchor = "start" if right > 0 else "end"
            names.append(text(x(point.x) + right, y(point.y) + down, name, "named", anchor))
    legend = _legend([one.name for one in series], columns=1)
    return drawing(460, top + 266, label, [*drawn, *names, *legend])


def said(series: Sequence[Series]) -> str:
    """Put curves over a share, in per cent, into words."""
    found = (
        (one.name, ", ".join(f"{point.y:.2f} at {point.x:.0f}{PER_CENT}" for point in one.points))
        for one in series
    )
    return " ".join(f"{name}: {points}." for name, points in found)


def _mark(kind: int, x: float, y: float, tip: str) -> Markup:
    """Draw a point whose shape, and not only its colour, tells its kind."""
    outlines = (
        ((0.0, -4.0), (4.0, 0.0), (0.0, 4.0), (-4.0, 0.0)),
        ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        ((0.0, -4.0), (3.8, 3.2), (-3.8, 3.2)),
    )
    title, shape = tag("title", tip), kind % _MARKS
    style = f"mark s{shape}{' hollow' if kind // _MARKS % 2 else ''}"
    if shape == len(outlines):
        return tag("circle", title, cx=x, cy=y, r=3.4, class_=style)
    points = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in outlines[shape])
    return tag("polygon", title, points=points, class_=style)


def _legend(names: Sequence[str], columns: int = _COLUMNS) -> list[Markup]:
    drawn = []
    for at, name in enumerate(names):
        x, y = 8.0 + at % columns * 340 // columns, 10.0 + at // columns * _LEGEND_ROW
        drawn += [_mark(at, x, y, name), text(x + 9, y + 4, name, "tick")]
    return drawn


def _legend_height(series: Sequence[Series], columns: int = _COLUMNS) -> float:
    return -(-len(series) // columns) * _LEGEND_ROW
