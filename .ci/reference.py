"""Print docs/configuration.md: every setting of every command, from the schemas."""

from pydantic import BaseModel

from schemas.request.adoption import AdoptionConfig
from schemas.request.bench import BenchConfig
from schemas.request.comparison import ComparisonConfig
from schemas.request.compression import CompressionConfig
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.export import ExportConfig
from schemas.request.nightly import NightlyConfig
from schemas.request.quantization import QuantizationConfig
from schemas.request.settings import settings

INTRODUCTION = """\
# Configuration

Made from the schemas by `make reference`; do not edit.

`--config FILE.yaml`, flags, `--set a.b=value` and Python build the same object; of the first three
a later one overrides an earlier one, and an unknown key is refused. A setting without a flag is
given by `--set` or in the file; [deploy/compress.yaml](../deploy/compress.yaml) is an example. A
default that is not shown is none.
"""
HEADING = "| setting | flag | default | |\n|---|---|---|---|"
SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "svdllm compress": (RunConfig, ""),
    "svdllm recover": (
        AdoptionConfig,
        "`checkpoint` is the argument of the command. Beside those of compress in `refinement`, "
        "`recovery`, `evaluation` and `cluster`:",
    ),
    "svdllm nightly": (NightlyConfig, "Beside those of compress from `ratio` on:"),
    "svdllm evaluate": (EvaluationConfig, "`checkpoint` is the argument of the command."),
    "svdllm compare": (
        ComparisonConfig,
        "Beside those of compress in `calibration`, `numerics` and `cluster`:",
    ),
    "svdllm bench": (BenchConfig, "`checkpoint` is the argument of the command."),
    "svdllm export": (ExportConfig, "`checkpoint` is the argument of the command."),
    "svdllm quantize": (QuantizationConfig, "`checkpoint` is the argument of the command."),
}
IN_GROUPS = {setting.path for setting in settings(CompressionConfig) if "." in setting.path}
COMMON = {
    "svdllm nightly": {setting.path for setting in settings(CompressionConfig)},
    "svdllm recover": IN_GROUPS,
    "svdllm compare": IN_GROUPS | {"tasks.samples"},  # refused there
}


def rows(schema: type[BaseModel], listed: set[str]) -> list[str]:
    """A row for every setting that is not one of those `listed` before."""
    found = []
    for setting in settings(schema):
        if setting.path not in listed:
            flag = f"`{setting.flag}`" if setting.flag else ""
            default = setting.unset or (setting.default and f"`{setting.default}`")
            described = str(setting.field.description).replace("|", r"\|")
            found.append(f"| `{setting.path}` | {flag} | {default} | {described} |")
    return found


def page() -> str:
    """The whole of docs/configuration.md."""
    parts = [INTRODUCTION]
    for title, (schema, remark) in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [f"{remark}\n"] if remark else []
        parts.append("\n".join([HEADING, *rows(schema, COMMON.get(title, set()))]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
