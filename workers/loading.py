"""Loading a whole checkpoint with plain transformers, and refusing less than an exact match."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from schemas.config import Device, DType
from schemas.errors import CheckpointError, ConfigError, VerificationError
from schemas.manifest import FORMAT
from workers.config_file import read_config

RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
SHIPPED = ("configuration_lowrank.py", "modeling_lowrank.py")
_UNEXPECTED = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def load_model(
    folder: Path, dtype: DType, device: Device, trust_remote_code: bool
) -> PreTrainedModel:
    """The model of a checkpoint folder, in evaluation mode; device auto is cuda where there is one.

    Raises CheckpointError where it cannot be read, VerificationError where a tensor of the files
    has no place in the model or the reverse: transformers would fill it with random numbers.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=may_run_code(folder, trust_remote_code),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it ({error}); complete the folder, or allow "
            "trust_remote_code if its model type comes as code that you trust"
        ) from error
    model, info = loaded
    if wrong := {kind: sorted(map(str, info[kind])) for kind in _UNEXPECTED if info[kind]}:
        raise VerificationError(
            f"{folder}: config.json and the weights do not match: "
            + "; ".join(f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in wrong.items())
            + "; write the checkpoint anew, its values would be random there"
        )
    placed: PreTrainedModel = model.to(_place(device)).eval()
    return placed


def load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder; this program never ships code for one.

    Raises CheckpointError where transformers cannot load it.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # a damaged file makes it raise whatever its parts raise
        raise CheckpointError(
            f"{folder}: no tokenizer that transformers can load ({error}); copy the tokenizer "
            "files of the base model there"
        ) from error
    return tokenizer


def may_run_code(folder: Path, trust_remote_code: bool) -> bool:
    """Whether to run the Python files of a checkpoint: where asked to, and where they are ours.

    Ours means: the folder is a low-rank checkpoint of this program, its files equal those of
    `runtime/` byte for byte, and its configuration names no other code. Raises CheckpointError
    where it claims to be such a checkpoint and that does not hold.
    """
    if trust_remote_code or not _claims_to_be_ours(folder):
        return trust_remote_code
    foreign = [name for name in SHIPPED if not _equal(folder / name, RUNTIME / name)]
    named = read_config(folder).get("auto_map", {})
    foreign += [f"auto_map {value}" for value in named.values() if not _is_shipped(value)]
    # transformers runs this one, too, for a checkpoint whose code may run.
    foreign += [path.name for path in [folder / "custom_generate"] if path.exists()]
    if foreign:
        raise CheckpointError(
            f"{folder}: {', '.join(foreign)} is not the code that this version of the program "
            "ships; read it, then allow trust_remote_code, or compress anew"
        )
    return True


def _claims_to_be_ours(folder: Path) -> bool:
    path = folder / "manifest.json"
    if not path.is_file() or "low_rank" not in read_config(folder):
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); restore the file") from error
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _is_shipped(reference: object) -> bool:
    """Whether a "module.Class" names one of the shipped files; a path or a hub id does not."""
    return f"{str(reference).rpartition('.')[0]}.py" in SHIPPED


def _equal(path: Path, ours: Path) -> bool:
    return path.is_file() and path.read_bytes() == ours.read_bytes()


def _place(device: Device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': none is available here; use 'cpu' or 'auto'")
    return torch.device(device)
