"""`svdllm status`: the committed items of a run directory, compared with what its run needs."""

from pydantic import ValidationError

from pipeline.run_directory.journal import NAME
from pipeline.run_directory.ownership import describe
from schemas.errors import ConfigError
from schemas.location import Location, locate
from schemas.run.record import Activity, RunRecord, RunStatus, StageStatus
from workers.checkpoint.names import SUCCESS
from workers.storage.keys import OWNER, RUN_RECORD
from workers.storage.models import read_model
from workers.storage.places import exists, read_bytes
from workers.storage.store import Store


def read_record(run_dir: Location) -> RunRecord:
    """Return what the last command here asked for. Raises ConfigError if there was none."""
    path = run_dir / RUN_RECORD
    try:
        return RunRecord.model_validate_json(read_bytes(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or 'not there'}; not a run directory (OUTPUT.run, or what "
            "--run-dir named)"
        ) from error
    except ValidationError:
        raise ConfigError(f"{path}: written by another version of this program") from None


def read_status(run_dir: Location) -> RunStatus:
    """Count items by stage. Raises ConfigError if the folder is not a run directory."""
    record, store = read_record(run_dir), Store(run_dir)

    def stage(name: str, prefix: str, total: int | None) -> StageStatus:
        items = list(store.records(prefix))
        size = sum(item.bytes for item in items)
        return StageStatus(name=name, done=len(items), total=total, bytes=size)

    ids, taps = record.ids, record.taps
    factors = f"factors/{ids.factors}"
    if record.config.calibrates:
        bases = "bases" if record.config.cluster.keep_bases else "spectra"
        made = (
            *(stage(name, f"moments/{ids.moments(name)}", count) for name, count in taps.items()),
            stage("factorise", f"{bases}/{ids.bases}", record.matrices),
            stage("truncate", factors, None),
        )
    else:
        made = (stage("adopt", factors, None),)
    return RunStatus(
        model=record.config.model,
        owner=describe(run_dir / OWNER),
        activity=read_model(run_dir / NAME, Activity),
        stages=made,
        outputs={folder: exists(locate(folder) / SUCCESS) for folder in record.outputs},
    )
