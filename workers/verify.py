"""Is a compressed checkpoint what it says it is, and does plain transformers load it?"""

import json
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from schemas.errors import CheckpointError, VerificationError
from schemas.location import Url
from schemas.manifest import Check, Manifest
from workers.files import sha256_of
from workers.memory import available_bytes
from workers.objects import read_bytes
from workers.own_code import may_run_code

_LOAD_CHECK = Path(__file__).with_name("load_check.py")  # not imported: it imports torch
_SAMPLES = ("the base continues a text", "continues a text")  # as load_check.py names them
_CLEAN = "load in a clean process"
_TIMEOUT_S = 1800.0
_COPIES = 3.5  # in float32 and saved again, a bf16 checkpoint takes about this many times its size


def verify_checkpoint(folder: Path, published: bool, base: Path | None = None) -> list[Check]:
    """Checksums of every file, then a load in a clean process; `published` expects _SUCCESS.

    A `base` writes a text beside the result's, where it fits; it is not judged.

    Loading runs the code in the folder, so it is not done where a checksum is wrong or the code is
    not this program's own.
    A model too large for this host is checked by names and shapes only, which the checks say.
    Raises CheckpointError where the folder is no compressed checkpoint.
    """
    folder = folder.absolute()  # the clean process has another working directory
    manifest = read_manifest(folder)
    checks = [_files(folder, manifest)]
    if published:
        there = (folder / "_SUCCESS").is_file()
        checks.append(Check(name="success marker", passed=there, detail="" if there else "absent"))
    if not checks[0].passed:
        return [*checks, Check(name=_CLEAN, passed=None, detail="the files are not as written")]
    checks.append(_own_code(folder))
    if not checks[-1].passed:
        return [*checks, Check(name=_CLEAN, passed=None, detail="it would run a stranger's code")]
    weights = sum(entry.bytes for name, entry in manifest.files.items() if _is_weight(name))
    fits = weights * _COPIES < available_bytes()
    checks += _clean_process(folder, not fits, base if base and _fits(base) else None)
    if not fits:
        checks.append(
            Check(
                name="full load",
                passed=None,
                detail=f"{weights:,} bytes of weights are too many for this host",
            )
        )
    return checks


def samples_of(checks: list[Check]) -> tuple[str | None, str | None]:
    """What base and result wrote when they were loaded; None of one that was not."""
    said = {check.name: check.detail for check in checks if check.passed}
    base, result = (said.get(name) for name in _SAMPLES)
    return base, result


def require(checks: list[Check], folder: Path | str) -> None:
    """Raises VerificationError naming every check that failed."""
    failed = [f"{check.name} ({check.detail})" for check in checks if check.passed is False]
    if failed:
        raise VerificationError(f"{folder}: {'; '.join(failed)}")


def read_manifest(folder: Path | Url) -> Manifest:
    """The manifest of a compressed checkpoint. Raises CheckpointError where there is none."""
    path = folder / "manifest.json"
    try:
        return Manifest.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; not a checkpoint of this program") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a manifest of this program ({error})") from None


def _files(folder: Path, manifest: Manifest) -> Check:
    there = {path.name for path in folder.iterdir() if path.is_file()}
    found = sha256_of(folder, sorted(there & manifest.files.keys()))
    wrong = [
        f"{name}: {'absent' if name not in there else 'changed'}"
        for name, entry in manifest.files.items()
        if found.get(name) != entry.sha256
    ]
    wrong += [
        f"{name}: not in the manifest"
        for name in sorted(there - manifest.files.keys())
        if name.endswith((".safetensors", ".py", ".bin", ".pt"))
    ]
    detail = "; ".join(wrong) or f"{len(manifest.files)} files"
    return Check(name="files and SHA-256", passed=not wrong, detail=detail)


def _own_code(folder: Path) -> Check:
    try:
        passed, detail = may_run_code(folder, trust_remote_code=False), ""
    except CheckpointError as error:
        passed, detail = False, str(error)
    return Check(name="code is this program's own", passed=passed, detail=detail)


def _fits(base: Path) -> bool:
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return weights * _COPIES < available_bytes()


def _clean_process(folder: Path, shapes_only: bool, base: Path | None) -> list[Check]:
    command = [sys.executable, "-I", str(_LOAD_CHECK), str(folder)]
    command += ["--shapes-only"] if shapes_only else []
    command += ["--base", str(base)] if base else []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd="/", check=False
        )
        rows = [Check.model_validate(row) for row in json.loads(done.stdout.splitlines()[-1])]
        return [row if row.name != _SAMPLES[0] or row.passed else _not_judged(row) for row in rows]
    except subprocess.TimeoutExpired:
        return [Check(name=_CLEAN, passed=False, detail=f"not finished in {_TIMEOUT_S:g} s")]
    except (ValueError, IndexError):
        why = done.stderr[-2000:].strip() or "no output"
        return [Check(name=_CLEAN, passed=False, detail=f"exit status {done.returncode}: {why}")]


def _not_judged(check: Check) -> Check:
    return check.model_copy(update={"passed": None})


def _is_weight(name: str) -> bool:
    return name.endswith(".safetensors")
