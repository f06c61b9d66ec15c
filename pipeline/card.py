"""The model card of a compressed checkpoint, from its own figures."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from schemas.config import RunConfig
from schemas.manifest import Compression
from workers.files import write_text

_KEPT: tuple[str, ...] = ("license", "license_name", "license_link", "language")
_TEMPLATES = Path(__file__).parent / "templates"


def write_card(folder: Path, base: Path, config: RunConfig, compression: Compression) -> None:
    """README.md with front matter: base_model, licence and library."""
    encodings = [matrix.encoding for matrix in compression.matrices]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template("card.md.j2").render(
        front=yaml.safe_dump(_front(base, config), sort_keys=False).strip(),
        name=Path(config.model).name,
        c=compression,
        counts={kind: encodings.count(kind) for kind in ("pivoted", "plain", "dense")},
        notes=[(m.name, note) for m in compression.matrices for note in m.fallbacks],
        remarks=[(m.name, note) for m in compression.matrices for note in m.remarks],
    )
    write_text(folder / "README.md", text)


def _front(base: Path, config: RunConfig) -> dict[str, Any]:
    """Licence and languages of the base's own card, where it has one."""
    card = _front_matter(base / "README.md")
    kept = {key: card[key] for key in _KEPT if key in card}
    is_hub_id = "://" not in config.model and not Path(config.model).exists()
    base_model = config.model if is_hub_id else Path(config.model).name
    return {"base_model": base_model, "library_name": "transformers", **kept, "tags": ["svd-llm"]}


def _front_matter(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    parts = path.read_text(encoding="utf-8").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:  # the base's card is not ours to refuse
        return {}
    return found if isinstance(found, dict) else {}
