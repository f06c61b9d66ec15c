"""Settings: the fields of a configuration, as YAML, command lines and the reference name them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

from schemas.request.sizes import AS_COUNT, AS_SIZE, format_size


@dataclass(frozen=True)
class Flag:
    """Metadata of a field, in its `Annotated`.

    `name` is its option on a command line: without one, a field of the configuration itself has its
    own name, and a field of a group none. `unset` says in words what holds if it is not given. A
    `hidden` one has no option.
    """

    name: str = ""
    unset: str = ""
    positional: bool = False
    hidden: bool = False


def _words(value: Any) -> Any:
    """Split words that stand in one text, or in several; anything else is for pydantic to judge."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return value
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


SPLIT = BeforeValidator(_words)
"""Makes text that is separated by commas a tuple."""
Words = Annotated[tuple[str, ...], SPLIT]


def _several(value: Any) -> Any:
    """Split numbers that stand in one text; one number is a tuple of it."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, (int, float)) else value


SEVERAL = BeforeValidator(_several)
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], SEVERAL, Field(min_length=1)]
"""One or several counts, separated by commas."""


class Setting(NamedTuple):
    """One setting. `path` is its name in YAML and --set, such as calibration.samples; `flag` its
    option, such as --calibration-samples, or empty; `unset` what holds without it, in words.
    """

    path: str
    flag: str
    unset: str
    positional: bool
    field: FieldInfo

    @property
    def parameter(self) -> str:
        """The option or argument as the name of a Python parameter."""
        return (self.flag or self.path).removeprefix("--").replace("-", "_")

    @property
    def kind(self) -> Any:
        """The type of what people write: its annotation, or text for a size or a count."""
        as_text = AS_SIZE in self.field.metadata or AS_COUNT in self.field.metadata
        return str if as_text else self.field.annotation

    @property
    def default(self) -> str:
        """The default as people write it; empty if there is none."""
        value = self.field.get_default(call_default_factory=True)
        if self.field.is_required() or value in (None, (), {}):
            return ""
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return format_size(value) if AS_SIZE in self.field.metadata else str(value)


def settings(schema: type[BaseModel]) -> Iterator[Setting]:
    """Yield every setting, those that the schema itself names before those that it inherits."""
    own = list(schema.__annotations__)
    inherited = [name for name in schema.model_fields if name not in own]
    for name in own + inherited:
        yield from _settings(name, schema.model_fields[name], prefix="")


def _settings(name: str, field: FieldInfo, prefix: str) -> Iterator[Setting]:
    path = f"{prefix}{name}"
    if group := _group(field.annotation):
        for inner, inside in group.model_fields.items():
            yield from _settings(inner, inside, f"{path}.")
        return
    flag = next((found for found in field.metadata if isinstance(found, Flag)), Flag())
    option = flag.name or ("" if prefix else name.replace("_", "-"))
    yield Setting(
        path=path,
        flag=f"--{option}" if option and not (flag.positional or flag.hidden) else "",
        unset=flag.unset,
        positional=flag.positional,
        field=field,
    )


def _group(kind: Any) -> type[BaseModel] | None:
    """Return the schema of a group of settings, also of one that may be absent."""
    kinds = [kind, *get_args(kind)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
