"""`svdllm status`: the committed items of a run directory, compared with what its run needs."""

from pydantic import ValidationError

from pipeline.run_directory.journal import NAME
from pipeline.run_directory.ownership import LastOwner, last_owner
from schemas.errors import ConfigError
from schemas.location import Location, locate
from schemas.request.config import ROUNDS
from schemas.run.record import Activity, RunRecord, RunStatus, StageStatus
from workers.checkpoint.names import SUCCESS
from workers.storage.keys import OWNER, RUN_RECORD
from workers.storage.models import read_model
from workers.storage.places import exists, folders_in, names_in, read_bytes
from workers.storage.store import Store


def read_record(run_dir: Location) -> RunRecord:
    """Return what the last command here asked for. Raises ConfigError if there was none."""
    path = run_dir / RUN_RECORD
    try:
        return RunRecord.model_validate_json(read_bytes(path))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            if names_in(run_dir / OWNER):
                raise ConfigError(f"{run_dir}: a run has begun there, and made no plan") from error
            if rounds := folders_in(run_dir / ROUNDS):
                earlier = run_dir / ROUNDS / max(rounds, key=lambda name: (len(name), name)) / "run"
                raise ConfigError(
                    f"{run_dir}: an earlier round comes first, in {earlier}"
                ) from error
        raise ConfigError(
            f"{path}: {error.strerror or 'not there'}; not a run directory (OUTPUT.run, or what "
            "--run-dir named)"
        ) from error
    except ValidationError:
        raise ConfigError(f"{path}: written by another version of this program") from None


def read_status(run_dir: Location) -> RunStatus:
    """Count items by stage. Raises ConfigError if the folder is not a run directory.

    Other requests may have left more than the last one needs, which is not counted.
    """
    record, store = read_record(run_dir), Store(run_dir)

    def stage(name: str, totals: dict[str, int | None]) -> StageStatus:
        done, size = 0, 0
        for prefix, total in totals.items():
            items = list(store.records(prefix))
            done += len(items) if total is None else min(len(items), total)
            size += sum(item.bytes for item in items)
        known = [total for total in totals.values() if total is not None]
        return StageStatus(name=name, done=done, total=sum(known) if known else None, bytes=size)

    ids, taps = record.ids, record.taps
    cut: dict[str, int | None] = {f"factors/{i}": None for i in (ids.factors, ids.neurons) if i}
    if record.config.calibrates:
        bases = "bases" if record.config.cluster.keep_bases else "spectra"
        made = (
            *(stage(name, {f"moments/{ids.moments(name)}": n}) for name, n in taps.items()),
            stage(
                "factorise",
                {f"{bases}/{ids.bases}": record.matrices, f"neurons/{ids.neurons}": record.mlps},
            ),
            stage("truncate", cut),
        )
    else:
        made = (stage("adopt", cut),)
    owner = last_owner(run_dir / OWNER)
    return RunStatus(
        model=record.config.model,
        owner=owner.words,
        activity=_activity(read_model(run_dir / NAME, Activity), owner),
        stages=made,
        outputs={folder: exists(locate(folder) / SUCCESS) for folder in record.outputs},
    )


def _activity(last: Activity | None, owner: LastOwner) -> Activity | None:
    """Return what a driver does, or did before it ended; None if it has begun no stage yet."""
    if last is None or (not owner.ended and last.written < owner.since):  # of the driver before
        return None
    return last.model_copy(update={"left": None}) if owner.ended else last
