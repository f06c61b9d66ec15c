"""config.json of a checkpoint: in a folder, by itself, at a URL or on the hub; no weights."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of its library
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)

from schemas.errors import CheckpointError
from schemas.location import Location, locate
from workers.checkpoint.folder import read_small
from workers.checkpoint.names import CONFIG
from workers.checkpoint.strict_json import parse
from workers.storage.places import url_of

_CHOICES = ("attn_implementation", "experts_implementation")
HUB_ERRORS = (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint folder."""
    return _read(folder / CONFIG)


def config_of(model: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """Return config.json of a folder, a file, a hub id or a URL, and its place; fetches no more."""
    if url := url_of(model):
        return _read(url / CONFIG), str(url / CONFIG)
    path = Path(locate(model)).expanduser()
    if path.is_dir():
        path = path / CONFIG
    elif not path.is_file():
        path = _fetch(model, revision)
    return _read(path), str(path)


def require_hub_id(model: str) -> None:
    """Raises CheckpointError if `model`, which is not a folder, cannot be a hub id either."""
    if (there := Path(model).expanduser()).is_file():
        raise CheckpointError(
            f"model {model!r}: a file, where a folder with config.json and .safetensors files is "
            "meant; name that folder (.bin, .pt and .gguf files are not read: convert them with "
            "transformers and save_pretrained)"
        )
    if there.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(
            f"model {model!r}: no such folder, and not a hub id like org/name; check the path"
        )


def not_given(model: str, error: Exception) -> CheckpointError:
    """Return the error for a `model` that the hub did not give."""
    return CheckpointError(
        f"model {model!r}: no such folder, and the hub did not give it ({error}); "
        "name a local folder, or check the id, the network and HF_TOKEN"
    )


def _fetch(model: str, revision: str | None) -> Path:
    require_hub_id(model)
    try:
        return Path(hf_hub_download(model, CONFIG, revision=revision))
    except HUB_ERRORS as error:
        raise not_given(model, error) from error


def _read(path: Location) -> dict[str, Any]:
    try:
        config = parse(read_small(path), _spelt)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; is this a Hugging Face checkpoint?") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); fetch the file again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object; fetch the file again")
    return _without_choice(config)


def _spelt(constant: str) -> dict[str, str]:
    """Return a number that is none of JSON's as transformers 5 writes it; older ones did not."""
    return {"__float__": constant}


def _without_choice(config: dict[str, Any]) -> dict[str, Any]:
    """Return it without what would choose the code that computes, which may come from the hub."""
    return {
        key: _without_choice(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not key.endswith(_CHOICES)
    }
