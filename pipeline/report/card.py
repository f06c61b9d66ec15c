"""The model card of a compressed checkpoint, from its own figures."""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline.report import wording
from pipeline.report.generation import compared
from pipeline.report.model_index import model_index
from pipeline.report.recovery import trained
from schemas.model.dtypes import FORMATS
from schemas.printable import printable
from schemas.result.evaluation import EvaluationReport
from schemas.result.export import Exported
from schemas.result.manifest import Compression
from schemas.result.quantization import Quantization
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import auto_class, dtype_of
from workers.checkpoint.names import CARD
from workers.storage.files import write_text

_KEPT: tuple[str, ...] = ("license", "license_name", "license_link", "language")
_TAGS = ("svd-llm",)
_LARGEST = 10**6
_TEMPLATES = Path(__file__).parent / "templates"


def write_card(
    folder: Path, base: Path, compression: Compression, evaluation: EvaluationReport | None = None
) -> None:
    """Write README.md with front matter: base_model, licence and library."""
    name, front = Path(compression.model).name, front_matter(base, compression.model)
    if evaluation is not None:
        front |= model_index(f"{name}-{100 * compression.ratio:.0f}", evaluation)
    text = _template("card.md.j2").render(
        front=_front(front),
        name=_markdown(name),
        c=compression,
        e=evaluation,
        wording=wording,
        wrote=compared(evaluation),
        trained=trained,
        recovery_text=_markdown(_texts(compression)),
        calibration=_markdown(wording.texts(compression.calibration.text)),
        text=None if evaluation is None else _markdown(Path(evaluation.text).name),
        counts=Counter(matrix.encoding for matrix in compression.matrices),
        notes=[(m.name, note) for m in compression.matrices for note in m.fallbacks],
        remarks=[(m.name, note) for m in compression.matrices for note in m.remarks],
    )
    write_text(folder / CARD, text)


def write_dense_card(exported: Exported, source: Path, compression: Compression) -> None:
    """Write README.md of a checkpoint whose matrices are whole again, or narrow; `source` has the
    card of the compressed one.
    """
    text = _template("dense.md.j2").render(
        front=_front(front_matter(source, compression.model)),
        name=_markdown(Path(compression.model).name),
        c=compression,
        auto=auto_class(read_config(exported.path)),
        exported=exported,
    )
    write_text(exported.path / CARD, text)


def write_quantised_card(
    source: Path, folder: Path, done: Quantization, compression: Compression | None
) -> None:
    """Write README.md of a quantised checkpoint, which is compressed, too, if it has a description.

    Licence and languages are those of the card of `source`, which it was made from.
    """
    tags = [*(_TAGS if compression else ()), "compressed-tensors"]
    front = front_matter(source, done.base, tags) | {"base_model_relation": "quantized"}
    text = _template("quantised.md.j2").render(
        front=_front(front),
        name=_markdown(Path(done.base).name),
        calibration=_markdown(wording.texts(done.calibration)),
        auto=auto_class(read_config(folder)),
        q=done,
        c=compression,
        dtype=FORMATS[dtype_of(read_config(source), str(source))].torch,
    )
    write_text(folder / CARD, text)


@functools.cache
def _template(name: str) -> Template:
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(name)


def _front(entries: dict[str, Any]) -> str:
    return yaml.safe_dump(entries, sort_keys=False).strip()


def _texts(compression: Compression) -> str:
    recovery = compression.recovery
    asked = () if recovery is None else recovery.config.text
    return wording.texts(asked or compression.calibration.text)


def front_matter(folder: Path, base: str, tags: Sequence[str] = _TAGS) -> dict[str, Any]:
    """Return the front matter, with licence and languages of the card in `folder` if it has one."""
    card = _read_front(folder / CARD)
    kept = {key: found for key in _KEPT if (found := _plain(card.get(key))) is not None}
    is_hub_id = "://" not in base and not Path(base).is_absolute() and not Path(base).exists()
    base_model = printable(base if is_hub_id else Path(base).name)
    return {"base_model": base_model, "library_name": "transformers", **kept, "tags": [*tags]}


def _read_front(path: Path) -> dict[str, Any]:
    """Parse the front matter between the dashes of a card; empty if it is not a mapping."""
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return {}
    parts = path.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # the base's bad card is not our error
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: object) -> str | list[str] | None:
    """Put one or several texts of a stranger's card on one line each; None for other values."""
    if isinstance(value, list):
        return [printable(part) for part in value if isinstance(part, str)] or None
    return printable(value) if isinstance(value, str) else None


def _markdown(text: str) -> str:
    """Escape a name so that Markdown shows it as it is, wherever it stands in a line."""
    return re.sub(r"([\\`*_\[\]<>#|&])", r"\\\1", printable(text))
