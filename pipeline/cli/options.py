"""Command-line options, made from the settings of a configuration."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

from pipeline.request.flags import build
from schemas.request.settings import Setting, settings

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML of the same settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting: a.b=value. May be repeated.")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Set aside what ran in the run directory before.")
]
_TYPED = (bool, int)  # typer checks these and choices; pydantic reads all others from text


def asks(
    schema: type[BaseModel], without: tuple[str, ...] = (), **fixed: object
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose first parameter is a configuration.

    The command has an option for every setting of `schema` that has a flag, except the paths in
    `without` and the `fixed` settings; then --config, --set and what the function itself asks for.
    """
    asked = [s for s in settings(schema) if s.path not in {*without, *fixed}]
    parameters = [_parameter(s) for s in asked if s.flag or s.positional]
    parameters += [_keyword("config", ConfigFile), _keyword("settings", Assignments)]
    names = [parameter.name for parameter in parameters]

    def command(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            function(build(schema, flags | fixed), **given)

        _, *own = inspect.signature(function).parameters.values()
        run.__dict__["__signature__"] = inspect.Signature(parameters + own)
        return run

    return command


def _parameter(setting: Setting) -> inspect.Parameter:
    text = f"{setting.field.description}."
    if setting.positional:
        argument = Annotated[str, typer.Argument(help=text)]
        return _keyword(setting.parameter, argument, inspect.Parameter.empty)
    kind = _typed(setting.kind)
    shown = setting.unset or (kind is not bool and setting.default)
    flag = f"{setting.flag}/--no-{setting.flag[2:]}" if kind is bool else setting.flag
    option = typer.Option(flag, help=text, show_default=shown or False)
    return _keyword(setting.parameter, Annotated[kind | None, option])


def _typed(kind: Any) -> Any:
    """Return the type of an option for a setting of this annotation: text, if no other is apt."""
    several = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kinds = typing.get_args(kind) if several else (kind,)
    [one, *others] = [each for each in kinds if each is not type(None)]
    if not others and (one in _TYPED or typing.get_origin(one) is Literal):
        return one
    item, *_ = typing.get_args(one) or (None,)
    words = typing.get_origin(one) is tuple and (item is str or typing.get_origin(item) is Literal)
    return list[str] if words else str


def _keyword(name: str, kind: Any, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind
    )
