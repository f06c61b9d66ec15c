"""Whose code a checkpoint carries: this program's own, byte for byte, or a stranger's."""

import json
from collections.abc import Collection
from pathlib import Path

from schemas.errors import CheckpointError
from schemas.result.manifest import FORMAT
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import MODULE, Family, family
from workers.checkpoint.names import CONFIG, MANIFEST

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
_COMMON = ("configuration_lowrank.py", "latent_cache.py", "modeling_lowrank.py")


def shipped(names: Family) -> dict[str, bytes]:
    """Return the Python files of a compressed checkpoint, and their contents."""
    common = {name: (RUNTIME / name).read_bytes() for name in _COMMON}
    return common | {f"{MODULE}.py": names.code.encode()}


def may_run_code(folder: Path, trust_remote_code: bool) -> bool:
    """Whether to run the Python files of a checkpoint: if asked to, or if they are ours.

    Ours means: the folder is a low-rank checkpoint of this program, its files equal, byte for byte,
    those that this version writes, and its configuration names no other code. Raises
    CheckpointError if it claims to be such a checkpoint but is not.
    """
    if trust_remote_code or not _claims_to_be_ours(folder):
        return trust_remote_code
    config = read_config(folder)
    ours = shipped(family(config, str(folder / CONFIG)))
    foreign = [name for name, content in ours.items() if not _equal(folder / name, content)]
    named = config.get("auto_map", {})
    foreign += [f"auto_map {value}" for value in named.values() if not _is_in(ours, value)]
    # transformers runs this one, too, for a checkpoint whose code may run.
    foreign += [path.name for path in [folder / "custom_generate"] if path.exists()]
    if foreign:
        raise CheckpointError(
            f"{folder}: {', '.join(foreign)} is not the code that this version of the program "
            "ships; read it, then allow trust_remote_code, or write the checkpoint anew, with this "
            "version's code and the same numbers, by svdllm export --factors"
        )
    return True


def _claims_to_be_ours(folder: Path) -> bool:
    path = folder / MANIFEST
    if not path.is_file() or "low_rank" not in read_config(folder):
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); restore the file") from error
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _is_in(files: Collection[str], reference: object) -> bool:
    """Whether a "module.Class" names one of the files; a path or a hub id does not."""
    return f"{str(reference).rpartition('.')[0]}.py" in files


def _equal(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
