"""Print docs/configuration.md: every setting of every command, from the schemas."""

from typing import Any

from pydantic import BaseModel

from pipeline.configuration import FLAGS
from schemas.config import RunConfig
from schemas.evaluation import EvaluateConfig

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
    "svdllm evaluate": (EvaluateConfig, "`checkpoint` is the argument of the command."),
}


def rows(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """A row for every setting, in the order of the schema."""
    found = []
    for name, field in schema.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += rows(kind, f"{prefix}{name}.")
            continue
        path = f"{prefix}{name}"
        flag = "" if prefix or path in ARGUMENTS else f"--{name.replace('_', '-')}"
        flag = FLAGS.get(path, flag)
        default = "" if field.is_required() or field.default is None else f"`{field.default}`"
        shown = f"`{flag}`" if flag else ""
        found.append(f"| `{path}` | {shown} | {default} | {field.description} |")
    return found


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
