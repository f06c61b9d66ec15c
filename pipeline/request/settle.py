"""Make a request mean the same in every process of the cluster."""

from pathlib import Path

from schemas.location import locate
from schemas.request.config import RunConfig
from workers.checkpoint.fetching import resolve
from workers.storage.places import url_of
from workers.text.documents import is_local


def settle(config: RunConfig) -> RunConfig:
    """Word a run so that it means the same in every process of the cluster, now and later.

    Folders and text files become absolute, a hub id gets the commit that it stands for now, a URL
    stays.
    """
    found: dict[str, object] = {
        name: group.model_copy(update={"text": _absolute(group.text)})
        for name, group in (("calibration", config.calibration), ("evaluation", config.evaluation))
    }
    if isinstance(config.output, Path):
        found["output"] = config.output.expanduser().absolute()
    if not url_of(config.model):
        folder = resolve(config.model, config.revision)
        local = Path(locate(config.model)).expanduser().is_dir()
        found |= {"model": str(folder)} if local else {"revision": folder.name}
    config = config.model_copy(update=found)
    run_folder = config.run_folder
    if isinstance(run_folder, Path):
        run_folder = run_folder.expanduser().absolute()
    return config.model_copy(update={"run_dir": run_folder})


def _absolute(text: str | None) -> str | None:
    """Return a text's name, with its full path if it is a local file."""
    if text is None or not is_local(text):
        return text
    return str(Path(text).expanduser().absolute())
