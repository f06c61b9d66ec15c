"""Make a request mean the same in every process of the cluster, now and later."""

from pathlib import Path

from schemas.errors import TextError
from schemas.location import absolute, full_path
from schemas.request.config import RunConfig
from schemas.request.texts import share_of, with_share
from workers.checkpoint.source import on_every_node
from workers.storage.places import url_of
from workers.text.sources import is_local


def settled(config: RunConfig) -> RunConfig:
    """Return the request with full paths of text files, output, run directory and so on.

    Raises TextError if one cannot be written beside others.
    """
    calibration, recovery, evaluation = config.calibration, config.recovery, config.evaluation
    texts = {
        "calibration": calibration.model_copy(update={"text": _full_names(calibration.text)}),
        "recovery": recovery.model_copy(update={"text": _full_names(recovery.text)}),
    }
    if evaluation.text is not None:
        texts["evaluation"] = evaluation.model_copy(update={"text": _full_name(evaluation.text)})
    output = config.output
    places = {
        "output": full_path(output) if isinstance(output, Path) else output,
        "run_dir": absolute(config.run_folder),
    }
    if config.adopt is not None:
        places["adopt"] = absolute(config.adopt)
    return config.model_copy(update={**texts, **places})


def pinned(config: RunConfig, folder: Path) -> RunConfig:
    """Return the request with the base that was found in `folder`: a full path, or the commit that
    a hub id stands for now. A URL stays.
    """
    if url_of(config.model):
        return config
    model, revision = on_every_node(config.model, folder)
    return config.model_copy(update={"model": model, "revision": revision})


def _full_names(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Do so for several, with their shares. Raises TextError if a full path has a comma in it."""
    found = []
    for text in texts:
        name, share = share_of(text)
        if "," in (name := _full_name(name)):
            raise TextError(f"{name}: a comma separates texts; rename the file or its folder")
        found.append(with_share(name, share))
    return tuple(found)


def _full_name(text: str) -> str:
    """Return a text's name, with its full path if it is a local file."""
    return str(Path(text).expanduser().absolute()) if is_local(text) else text
