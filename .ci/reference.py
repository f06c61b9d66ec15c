"""Print docs/configuration.md: every setting of every command, from the schemas."""

from typing import Any, get_args

from pydantic import BaseModel

from pipeline.request.flags import FLAGS
from schemas.request.config import RunConfig
from schemas.request.nightly import NightlyConfig
from schemas.result.evaluation import EvaluateConfig

INTRODUCTION = """\
# Configuration

Made from the schemas by `make reference`; do not edit.

`--config FILE.yaml`, flags, `--set a.b=value` and Python build the same object; of the first three
a later one overrides an earlier one, and an unknown key is refused. A setting without a flag is
given by `--set` or in the file; [deploy/compress.yaml](../deploy/compress.yaml) is an example. A
default that is not shown is none.
"""
ARGUMENTS = ("checkpoint",)
HEADING = "| setting | flag | default | |\n|---|---|---|---|"
SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "svdllm compress": (RunConfig, ""),
    "svdllm nightly": (NightlyConfig, "Beside those of compress, without `model`:"),
    "svdllm evaluate": (EvaluateConfig, "`checkpoint` is the argument of the command."),
}


def rows(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """A row for every setting that a schema names itself, in its order."""
    found = []
    for name in schema.__annotations__:
        field = schema.model_fields[name]
        if group := _group(field.annotation):
            found += rows(group, f"{prefix}{name}.")
            continue
        path = f"{prefix}{field.alias or name}"
        flag = "" if prefix or path in ARGUMENTS else f"--{path.replace('_', '-')}"
        flag = FLAGS.get(path, flag)
        default = "" if field.is_required() or not _shown(field.default) else f"`{field.default}`"
        shown = f"`{flag}`" if flag else ""
        described = str(field.description).replace("|", r"\|")
        found.append(f"| `{path}` | {shown} | {default} | {described} |")
    return found


def _group(kind: Any) -> type[BaseModel] | None:
    """The schema of a group of settings, also of one that may be absent."""
    kinds = [kind, *get_args(kind)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _shown(default: object) -> bool:
    return default is not None and default != ()


def page() -> str:
    """The whole of docs/configuration.md."""
    parts = [INTRODUCTION]
    for title, (schema, remark) in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [f"{remark}\n"] if remark else []
        parts.append("\n".join([HEADING, *rows(schema)]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
