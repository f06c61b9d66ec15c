"""Earlier work in a run directory: whether a run may continue it, or must start over."""

from itertools import count

from pipeline.progress import Progress
from pipeline.run_directory.ownership import take
from schemas.errors import ConfigError
from schemas.location import Location, Url
from schemas.request.config import ROUNDS
from schemas.run.record import RunRecord
from workers.storage.keys import OWNER, RUN_RECORD
from workers.storage.models import read_model
from workers.storage.places import files_below


def require_same(root: Location, now: RunRecord) -> RunRecord | None:
    """Return the record of the last run here. Raises ConfigError if it has other moments than
    `now`.

    Truncation, ratio, allocation, encoding and placement may differ: its items can still be used.
    """
    if (before := read_model(root / RUN_RECORD, RunRecord)) is None:
        return None
    same_gradients = None in (before.ids.backward, now.ids.backward) or (
        before.ids.backward == now.ids.backward
    )
    if before.ids.forward == now.ids.forward and same_gradients:
        return before
    raise ConfigError(
        f"run_dir {root} holds a run of another identity: {'; '.join(changes(before, now))}. "
        "Ask for what was asked then, name another --run-dir, or start over beside it with --fresh"
    )


def changes(before: RunRecord, now: RunRecord) -> list[str]:
    """Return what differs in the basis of its numbers, each as "name: before -> now"."""
    one, other = _asked(before), _asked(now)
    lines = [f"{name}: {one[name]} -> {other[name]}" for name in one if one[name] != other[name]]
    found, given = _found(before), _found(now)
    lines += [
        f"{name}: {found.get(name, 'none')} -> {given.get(name, 'none')}"
        for name in {**found, **given}
        if found.get(name) != given.get(name)
    ]
    tokens = before.ground.forward_tokens, before.ground.backward_tokens
    if tokens != (now.ground.forward_tokens, now.ground.backward_tokens) and not lines:
        lines.append(f"the content of {', '.join(now.config.calibration.text)}, or the tokenizer")
    return lines or ["items of another version of this program"]


def set_aside(root: Location, progress: Progress) -> None:
    """Rename an existing run directory to the next free name beside it.

    Raises OwnershipError if a driver works in it or in one of its rounds, ConfigError if it cannot
    be renamed.
    """
    if isinstance(root, Url):
        if files_below(root):
            raise ConfigError(f"run_dir {root}: --fresh renames folders only; name another one")
        return
    if not root.exists():
        return
    for run in (root, *root.glob(f"{ROUNDS}/*/run")):
        take(run / OWNER, progress.note)
    names = (root.with_name(f"{root.name}.{number}") for number in count(1))
    aside = next(path for path in names if not path.exists())
    root.rename(aside)
    progress.note(f"{root}: kept as {aside}; starting over")


def _asked(record: RunRecord) -> dict[str, object]:
    config = record.config
    text = {f"calibration.{key}": value for key, value in config.calibration.model_dump().items()}
    return text | {"seed": config.seed, "numerics.threads": config.numerics.threads}


def _found(record: RunRecord) -> dict[str, str]:
    ground = record.ground
    files = {f"file {name} of the base": found[:12] for name, found in ground.base_files.items()}
    adopted = {"adopted checkpoint": ground.adopted} if ground.adopted else {}
    return {"dtype": ground.dtype, "device": ground.device, **ground.versions, **files, **adopted}
