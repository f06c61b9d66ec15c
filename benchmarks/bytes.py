"""Perplexity against bytes, cut, quantised or both: the table and plot of docs/quantisation.md.

    svdllm compress --model MODEL --ratio 0.1,0.2,0.3,0.4,0.6 --output CUT --calibration TEXT ...
    python -m benchmarks.bytes --model MODEL --cut CUT --calibration TEXT --evaluation TEXT \
        --work-dir DIR --data docs/quantisation.json --plot docs/images/bytes.svg

CUT has one folder for every ratio. Every row is kept in the file of the data at once, and one that
is there is not measured again: without --model, the table and the plot are drawn from it.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from benchmarks.picture import write_picture
from pipeline.quantize import quantize
from pipeline.report.plots import Point, Series, curves
from schemas.request.quantization import QuantizationConfig, Scheme
from workers.evaluation.perplexity import perplexity, stored
from workers.model.loading import load_model, load_tokenizer
from workers.process.logs import log, set_up_logging
from workers.storage.files import write_text
from workers.text.windows import evaluation_windows, read_text

_LENGTH, _WINDOWS = 1024, 16
_GPTQ = {"calibration_samples": 8, "sequence_length": _LENGTH, "dtype": "auto"}
_DENSE: tuple[tuple[Scheme, bool], ...] = (
    *(("W4A16", True), ("W8A16", False), ("W4A16", False), ("W3A16", True), ("W2A16", True)),
)
_CUT: tuple[tuple[Scheme, bool], ...] = (("W4A16", True), ("W8A16", False))
_QUANTISED = ("0.20", "0.10", "0.40", "0.30", "0.60")  # ratios at which it is quantised, too
_DESTROYED = 10  # times the least perplexity


class Row(NamedTuple):
    """A checkpoint: what is removed of the decoder's matrices, its scheme, "bf16" if it is not
    quantised, how it was quantised, the bytes of its weight files, and its perplexity.
    """

    removed: float
    scheme: str
    method: str
    bytes: int
    perplexity: float


def main() -> None:
    """Measure every row that is not there yet, then print the table and draw the plot."""
    options = _parse()
    set_up_logging()
    rows = _read(options.data)
    for checkpoint, removed, scheme, calibrated in _wanted(options) if options.model else ():
        method = "" if scheme is None else "GPTQ" if calibrated else "to nearest"
        key = (removed, scheme or "bf16", method)
        if any(row[:3] == key for row in rows):
            continue
        folder = checkpoint
        if scheme is not None:
            folder = _quantised(options, checkpoint, removed, scheme, method)
        rows.append(Row(*key, stored(folder)[0], _score(folder, options.evaluation)))
        log.info("%s", rows[-1])
        text = json.dumps([row._asdict() for row in rows], indent=1)
        write_text(options.data, text + "\n")
    Console(width=100).print(_table(rows))
    if options.plot:
        write_picture(options.plot, _drawn(rows))


def _wanted(options: argparse.Namespace) -> Iterator[tuple[Path, float, Scheme | None, bool]]:
    """Yield checkpoint, ratio, scheme and whether to calibrate, what says most first."""
    cut = {folder.name.removeprefix("ratio-"): folder for folder in options.cut.glob("ratio-*")}
    yield options.model, 0.0, None, False
    for ratio, folder in sorted(cut.items()):
        yield folder, float(ratio), None, False
    for scheme, calibrated in _DENSE:
        yield options.model, 0.0, scheme, calibrated
    for ratio in _QUANTISED:
        for scheme, calibrated in _CUT if ratio in cut else ():
            yield cut[ratio], float(ratio), scheme, calibrated


def _quantised(
    options: argparse.Namespace, checkpoint: Path, removed: float, scheme: Scheme, method: str
) -> Path:
    folder: Path = options.work_dir / f"{removed:.2f}-{scheme}-{method}".replace(" ", "-")
    if not folder.exists():
        asked = {"checkpoint": str(checkpoint), "scheme": scheme, "output": folder}
        gptq = {"calibration": (str(options.calibration),), **_GPTQ} if method == "GPTQ" else {}
        quantize(QuantizationConfig.model_validate(asked | gptq))
    return folder


def _score(folder: Path, text: Path) -> float:
    """Return the perplexity of `svdllm evaluate --dtype auto`, which lets it write texts, too."""
    tokens, _ = read_text(str(text), "evaluation", load_tokenizer(folder, trust_remote_code=False))
    model = load_model(folder, "auto", "auto", trust_remote_code=False)
    return perplexity(model, evaluation_windows(tokens, _LENGTH, _WINDOWS)).perplexity


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _table(rows: list[Row]) -> Table:
    table = Table("removed", "stored as", "MB", "of dense", "perplexity")
    whole = next(row.bytes for row in rows if row[:2] == (0.0, "bf16"))
    for row in sorted(rows, key=lambda row: -row.bytes):
        name = f"{row.scheme}, {row.method}" if row.method else row.scheme
        size = f"{row.bytes / 1e6:.1f}"
        share = f"{row.bytes / whole:.0%}"
        table.add_row(f"{row.removed:.0%}", name, size, share, f"{row.perplexity:.2f}")
    return table


def _drawn(rows: list[Row]) -> Markup:
    """Draw a line for the dense model at fewer bits, and one for each scheme over ratios, without
    what destroyed the model.
    """
    most = _DESTROYED * min(row.perplexity for row in rows)
    best = [
        row
        for row in rows
        if row.perplexity < most and (row.method != "to nearest" or row.scheme == "W8A16")
    ]
    kinds = {
        "bf16, cut at more and more": [row for row in best if row.scheme == "bf16"],
        "dense, at fewer and fewer bits": [row for row in best if not row.removed],
        "W8A16, cut at more and more": [row for row in best if row.scheme == "W8A16"],
        "W4A16, cut at more and more": [row for row in best if row.scheme == "W4A16"],
    }
    series = [
        Series(name, [_point(row) for row in ordered], [_label(row) for row in ordered])
        for name, some in kinds.items()
        if (ordered := sorted(some, key=lambda row: -row.bytes))
    ]
    return curves(series, "MB of weight files", "perplexity", "Perplexity against bytes")


def _point(row: Row) -> Point:
    return Point(row.bytes / 1e6, row.perplexity, f"{_label(row)}: {row.perplexity:.2f}")


def _label(row: Row) -> str:
    return f"{row.removed:.0%}" if row.scheme == "bf16" or row.removed else row.scheme


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cut", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
