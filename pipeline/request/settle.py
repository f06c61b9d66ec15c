"""Make a request mean the same in every process of the cluster, now and later."""

from pathlib import Path

from schemas.location import absolute, locate
from schemas.request.config import RunConfig
from schemas.request.texts import share_of
from workers.storage.places import url_of
from workers.text.sources import is_local


def settled(config: RunConfig) -> RunConfig:
    """Return the request with full paths of text files, output, run directory and so on."""
    texts = {
        name: group.model_copy(update={"text": _full_name(group.text)})
        for name, group in (("calibration", config.calibration), ("evaluation", config.evaluation))
    }
    mixed = (f"{_full_name(name)}:{share:g}" for name, share in map(share_of, config.recovery.text))
    recovery = config.recovery.model_copy(update={"text": tuple(mixed)})
    places = {"output": absolute(config.output), "run_dir": absolute(config.run_folder)}
    if config.adopt is not None:
        places["adopt"] = absolute(config.adopt)
    return config.model_copy(update={**texts, **places, "recovery": recovery})


def pinned(config: RunConfig, folder: Path) -> RunConfig:
    """Return the request with the base that was found in `folder`: a full path, or the commit that
    a hub id stands for now. A URL stays.
    """
    if url_of(config.model):
        return config
    local = Path(locate(config.model)).expanduser().is_dir()
    found = {"model": str(folder)} if local else {"revision": folder.name}
    return config.model_copy(update=found)


def _full_name(text: str | None) -> str | None:
    """Return a text's name, with its full path if it is a local file."""
    if text is None or not is_local(text):
        return text
    return str(Path(text).expanduser().absolute())
