"""One configuration from YAML, flags and --set, in rising order of precedence."""

import json
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from schemas.errors import ConfigError
from schemas.printable import printable
from schemas.request.config import RunConfig
from schemas.request.methods import METHODS
from schemas.request.recovery import METHODS as RECOVERIES
from schemas.request.settings import settings

T = TypeVar("T", bound=BaseModel)

_RATIO = "; a ratio is the fraction that is removed, from 0 to below 1, as 0.2 or 0.2,0.4"


def build(schema: type[T], flags: Mapping[str, Any]) -> T:
    """Build a configuration of `schema` from options, by the names of their parameters.

    Options that were not given are None or empty. `config` names a YAML file, `settings` is a
    list of "a.b=value". Raises ConfigError, or pydantic's ValidationError, which `explain` puts
    into words.
    """
    values = _read_yaml(flags.get("config"))
    paths = {setting.parameter: setting.path for setting in settings(schema)}
    for name, value in flags.items():
        if value not in (None, []) and name not in ("config", "settings"):
            _assign(values, paths[name], value)
    for assignment in flags.get("settings") or ():
        path, found, text = assignment.partition("=")
        if not found or not path.strip():
            raise ConfigError(f"--set {assignment!r} is not of the form a.b=value")
        _assign(values, path.strip(), _parsed(text, f"--set {assignment!r}"))
    return schema.model_validate(values)


def explain(error: ValidationError) -> list[str]:
    """Return every complaint on one line: field, value, what is wrong."""
    found = error.errors()
    inner = {detail["loc"][:-1] for detail in found}  # what is refused there is counted as missing
    told = [d for d in found if d["type"] != "too_short" or d["loc"] not in inner]
    return [printable(_line(detail)) for detail in told]


def _line(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if not field:
        return str(message)
    if detail["input"] == ():  # of a ratio that nobody named
        return f"{field}: {message}"
    if detail["type"] == "missing":
        return f"{field}: not given; use --{field.replace('_', '-')} or the key {field} of --config"
    if detail["type"] == "extra_forbidden":
        return f"{field}: no such setting; docs/configuration.md lists them"
    if detail["type"] == "model_type":
        return f"{field} = {detail['input']!r}: a group of settings; name one, as {field}.NAME"
    remedy = _RATIO if detail["loc"][0] == "ratio" else ""
    return f"{field} = {detail['input']!r}: {message}{remedy}"


def _read_yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 ({error}); convert the file") from error
    values = _parsed(text, f"--config {path}")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"--config {path}: not a mapping of settings; write lines like seed: 1")
    return values


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible date
        raise ConfigError(f"{where}: not YAML ({error}); correct it") from error


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        if values.get(parent) is None:  # of a file in which all lines of the group are comments
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {parent} is not a group of settings")
    values[leaf] = value


def command_of(config: RunConfig) -> tuple[str, ...]:
    """Return `svdllm compress` with every setting that is not its default, as a list of arguments.

    A run directory in its default place is left out, and so is what an earlier round has made.
    """
    words = ["svdllm", "compress"]
    of_method, of_recovery = METHODS[config.method], RECOVERIES[config.recovery.method]
    presets: dict[str, Any] = of_method | {"allocation.method": of_method["allocation"]}
    presets |= {f"recovery.{name}": value for name, value in of_recovery.items()}
    for setting in settings(RunConfig):
        path, value = setting.path, attrgetter(setting.path)(config)
        usual = value == presets.get(path, setting.field.get_default(call_default_factory=True))
        if usual or (path == "run_dir" and value == Path(f"{config.output}.run")):
            continue
        if path == "adopt" and config.rounds > 1:
            continue
        flag = setting.flag
        if flag and isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, _plain(value)] if flag else ["--set", f"{path}={_yaml(value)}"]
    return tuple(words)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _yaml(value: object) -> str:
    plain = str(value) if isinstance(value, (str, Path)) else value  # a URL is more than a str
    text: str = yaml.safe_dump(plain, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip("\n")
