"""Checks that a compressed checkpoint is what it says, and that plain transformers loads it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from schemas.errors import CheckpointError, VerificationError
from schemas.location import Url
from schemas.result.manifest import Check, Manifest
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import LOW_RANK
from workers.checkpoint.names import QUANTIZATION, SUCCESS
from workers.checkpoint.own_code import may_run_code
from workers.checkpoint.published import read_manifest, read_quantization
from workers.checkpoint.stored import UNASKED, stored_sha256
from workers.process.cores import available_cores
from workers.process.memory import available_bytes
from workers.repetition import generation_of
from workers.storage.files import sha256_of

# What runs the load check: nothing of this project is in its path. The tests of whole runs name
# another, which starts faster.
INTERPRETER = (sys.executable, "-I")
Writes = Literal["sample", "dozen", "both"]
"""What is written in the load check: a text, a dozen, or a dozen by the base, too."""
_LOAD_CHECK = Path(__file__).with_name("load_check.py")  # not imported: it imports torch
_SAMPLES = ("the base continues a text", "continues a text")  # names of checks in load_check.py
_CLEAN = "load in a clean process"
LIMIT_S = 1800.0
FULL_LOAD_BYTES = 10**10  # larger models are loaded in part: two layers, embeddings, norm and head
_COPIES = 3.5  # in float32 and saved again, a bf16 checkpoint takes about this many times its size


def verify_checkpoint(
    folder: Path,
    published: bool,
    base: Path | None = None,
    stored: Mapping[str, Url] | None = None,
    limit_s: float = LIMIT_S,
    dozen: bool = False,
) -> list[Check]:
    """Check checksums of every file, then load in a clean process; `published` expects _SUCCESS.

    A model that is loaded whole continues a text, or a `dozen`. With a `base` that is small enough
    both continue a dozen, to compare them; the base is not judged.
    For `stored` weights the folder has only the headers: they are hashed in the store.

    Loading runs the code in the folder, so it is not done if a checksum is wrong or the code is
    not this program's own. Above FULL_LOAD_BYTES, or if the whole does not fit in memory, the
    first and the last layer are loaded, of a quantised one nothing. A check that this host could
    not do, or not within `limit_s` seconds, is not judged. Raises CheckpointError if it is no
    checkpoint of this program.
    """
    folder = folder.absolute()  # the clean process has another working directory
    manifest = read_manifest(folder)
    checks = [check_files(folder, manifest, stored or {})]
    if published:
        there = (folder / SUCCESS).is_file()
        checks.append(Check(name="success marker", passed=there, detail="" if there else "absent"))
    if not checks[0].passed:
        return [*checks, Check(name=_CLEAN, passed=None, detail="the files are not as written")]
    checks.append(_own_code(folder))
    if not checks[-1].passed:
        return [*checks, Check(name=_CLEAN, passed=None, detail="it would run a stranger's code")]
    if stored:
        why = f"weights in a store stay there above {UNASKED:,} bytes; name a folder: --work-dir"
        unloaded = Check(name=_CLEAN, passed=None, detail=why)
        return [*checks, *_clean_process([str(folder), "shapes", "0"], limit_s), unloaded]
    arguments = [str(folder), "whole" if _is_loaded(folder) else "part", str(available_bytes())]
    saved = _weight_bytes(folder) <= UNASKED and not (folder / QUANTIZATION).is_file()
    arguments += ["--save"] if saved else []  # not all that is quantised can be saved again
    arguments += ["--dozen"] if dozen else []
    arguments += ["--base", str(base)] if base and _is_loaded(base) else []
    return checks + _clean_process(arguments, limit_s)


def check_shapes(folder: Path, limit_s: float = LIMIT_S) -> Check:
    """Compare the names and shapes in a folder's weight files with those of transformers' model."""
    return _clean_process([str(folder.absolute()), "shapes", "0"], limit_s)[0]


def written_in(checks: list[Check]) -> tuple[Check | None, Check | None]:
    """Return the checks in which base and result wrote texts; None for one that was not loaded. The
    `detail` of each is a sample, its `generation` the figures of all texts, if there were more.
    """
    passed = {check.name: check for check in checks if check.passed}
    base, result = (passed.get(name) for name in _SAMPLES)
    return base, result


def require(checks: list[Check], folder: Path | str) -> None:
    """Raises VerificationError naming every check that failed."""
    failed = [f"{check.name} ({check.detail})" for check in checks if check.passed is False]
    if failed:
        raise VerificationError(f"{folder}: {'; '.join(failed)}")


def check_files(folder: Path, manifest: Manifest, stored: Mapping[str, Url]) -> Check:
    """Compare every file with the manifest; of `stored` weights, what the store holds."""
    there = {path.name for path in folder.iterdir() if path.is_file()}
    local = there & manifest.files.keys() - stored.keys()
    found = sha256_of(folder, sorted(local)) | stored_sha256(stored)
    wrong = {
        name: "absent" if name not in there else "changed"
        for name, entry in manifest.files.items()
        if found.get(name) != entry.sha256
    }
    wrong |= {
        name: "not in the manifest"
        for name in sorted(there - manifest.files.keys())
        if name.endswith((".safetensors", ".py", ".bin", ".pt"))
    }
    detail = "; ".join(f"{name}: {why}" for name, why in wrong.items())
    return Check(
        name="files and SHA-256",
        passed=not wrong,
        detail=detail or f"{len(manifest.files)} files",
        files=tuple(wrong),
    )


def _own_code(folder: Path) -> Check:
    files = sorted(path.name for path in folder.glob("*.py"))
    try:
        low_rank = LOW_RANK in read_config(folder)
        passed = not (files or low_rank) or may_run_code(folder, trust_remote_code=False)
        detail = "" if passed else f"{', '.join(files)}: only low-rank checkpoints have code"
    except CheckpointError as error:
        passed, detail = False, str(error)
    return Check(name="code is this program's own", passed=passed, detail=detail)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _is_loaded(folder: Path) -> bool:
    """Whether a model is small enough to be loaded whole, on this host."""
    weights, copies = _weight_bytes(folder), _COPIES
    if (folder / QUANTIZATION).is_file():  # taken apart into float32
        copies = 1 + 32 / read_quantization(folder).bits
    return weights <= FULL_LOAD_BYTES and weights * copies < available_bytes()


def _clean_process(arguments: list[str], limit_s: float) -> list[Check]:
    """Return the checks that were finished, and why it ended early, which is not judged."""
    command = [*INTERPRETER, str(_LOAD_CHECK), *arguments]
    threads = {"OMP_NUM_THREADS": str(available_cores())}  # Ray sets 1 in a worker
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=limit_s,
            cwd="/",
            check=False,
            env=os.environ | threads,
        )
        output, why = done.stdout, ""
        if done.returncode:
            said = done.stderr.decode(errors="replace")[-2000:].strip()
            why = f"ended early, exit status {done.returncode}: {said or 'no output'}"
    except subprocess.TimeoutExpired as error:
        output, why = error.stdout or b"", f"not finished in {limit_s:g} s"
    lines = output[: output.rfind(b"\n") + 1].splitlines()
    rows = [_check(json.loads(line)) for line in lines]
    return [*rows, Check(name=_CLEAN, passed=None, detail=why)] if why else rows


def _check(row: dict[str, Any]) -> Check:
    """Return a row of the script as a check, with figures of what a model wrote."""
    written = row.pop("written", None)
    if row["name"] == _SAMPLES[0] and not row["passed"]:
        row["passed"] = None  # the base is not judged
    return Check(**row, generation=written and generation_of(written))
