"""The command line that asks for a configuration: the inverse of `pipeline/configuration.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.configuration import FLAGS
from schemas.config import METHODS, RunConfig


def command_of(config: RunConfig) -> tuple[str, ...]:
    """`svdllm compress` with every setting that is not its default, argument by argument.

    A run directory in its default place is left out.
    """
    words = ["svdllm", "compress"]
    presets = METHODS[config.method]
    presets = presets | {"allocation.method": presets["allocation"]}
    for path, value in _chosen(config, presets):
        flag = FLAGS.get(path, "" if "." in path else f"--{path.replace('_', '-')}")
        if path == "run_dir" and value == Path(f"{config.output}.run"):
            continue
        words += [flag, _plain(value)] if flag else ["--set", f"{path}={_yaml(value)}"]
    return tuple(words)


def _chosen(
    settings: BaseModel, presets: dict[str, str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Path and value of every setting, at any depth, that has not its default."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _chosen(value, presets, f"{prefix}{name}.")
        elif value != presets.get(f"{prefix}{name}", field.default):
            yield f"{prefix}{name}", value


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _yaml(value: object) -> str:
    text: str = yaml.safe_dump(value, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip("\n")
