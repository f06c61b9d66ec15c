"""The tokenizer files of a checkpoint, checked before transformers and torch are loaded."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from schemas.errors import CheckpointError
from workers.checkpoint.folder import read_small
from workers.checkpoint.strict_json import parse

_FAST = "tokenizer.json"
_SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
TOKENIZERS = (_FAST, *_SLOW)  # one of them is enough
TOKENIZER_FILES = (  # patterns of all files that a tokenizer may consist of
    *TOKENIZERS,
    *("tokenizer*", "*.model", "vocab*", "merges.txt", "emoji.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*"),
)
_CONFIG = "tokenizer_config.json"
_ADVICE = "copy the tokenizer files of the base model there"


def require_tokenizer(folder: Path) -> None:
    """Raises CheckpointError if a folder's tokenizer is missing, damaged or code."""
    found = [name for name in TOKENIZERS if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder}: no tokenizer ({_FAST} or {', '.join(_SLOW)}); {_ADVICE}")
    settings = _settings(folder / _CONFIG)
    if _FAST in found:
        _require_intact(folder / _FAST)
    elif "AutoTokenizer" in settings.get("auto_map", {}):
        raise CheckpointError(
            f"{folder / _CONFIG}: the tokenizer is code that comes with the model, and no code "
            f"of a base is run; save it as {_FAST}, where you trust it, and put that file there"
        )


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = parse(read_small(path))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); {_ADVICE}") from error
    if not isinstance(found, dict) or not isinstance(found.get("auto_map", {}), dict):
        raise CheckpointError(f"{path}: not the settings of a tokenizer; {_ADVICE}")
    return found


def _require_intact(path: Path) -> None:
    try:
        Tokenizer.from_str(read_small(path).decode("utf-8"))
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises no other kind
        raise CheckpointError(f"{path}: not a tokenizer ({error}); {_ADVICE}") from error
