"""Imports go one way: schemas <- workers <- pipeline. The runtime stands alone."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import PurePath
from typing import NamedTuple

import pytest

from tests.documents import ROOT

PACKAGES = ("schemas", "workers", "pipeline", "runtime")
STANDARD_LIBRARY = sys.stdlib_module_names
NEVER_IMPORTED = {"benchmarks", "deploy", "svdllm", "tests"}


class Import(NamedTuple):
    line: int
    package: str
    """The top-level package that is imported."""
    relative: bool


def imports(path: PurePath, source: str) -> Iterator[Import]:
    """Every import statement of the file at `path`, wherever it stands in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name.partition(".")[0], relative=False)
        elif isinstance(node, ast.ImportFrom):
            outside = node.level > len(path.parent.parts)
            name = ".." if outside else path.parts[0] if node.level else node.module or ""
            yield Import(node.lineno, name.partition(".")[0], relative=node.level > 0)


def allowed(path: PurePath, imported: Import) -> bool:
    """Whether the file at `path`, relative to the repository, may import this."""
    name = imported.package
    match path.parts[0]:
        case "schemas":
            return name in STANDARD_LIBRARY or name in {"schemas", "pydantic"}
        case "workers":
            is_actor = path.match("workers/actors/*.py")
            return name not in NEVER_IMPORTED | {"pipeline"} and (name != "ray" or is_actor)
        case "pipeline":
            return name not in NEVER_IMPORTED
        case "runtime":
            # A shipped file finds its siblings by relative imports only.
            sibling = name == "runtime" and imported.relative
            return sibling or name in STANDARD_LIBRARY or name in {"torch", "transformers"}
        case other:
            raise ValueError(f"no import rule for {other}/")


def violations(path: PurePath, source: str) -> list[str]:
    return [
        f"{path}:{found.line} imports {found.package}"
        for found in imports(path, source)
        if not allowed(path, found)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_goes_the_other_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert not [
        violation
        for file in files
        for violation in violations(file.relative_to(ROOT), file.read_text("utf-8"))
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schemas/request/config.py", "import torch"),
        ("schemas/request/config.py", "from ray import remote"),
        ("schemas/request/config.py", "def f():\n    import transformers.models"),
        ("schemas/request/config.py", "from workers.storage.store import Store"),
        ("schemas/request/config.py", "from runtime import modeling_lowrank"),
        ("schemas/errors.py", "from .. import workers"),
        ("workers/calibration/moments.py", "import ray"),
        ("workers/truncation/actors.py", "import ray"),
        ("workers/actors/probe.py", "from pipeline.cli import main"),
        ("workers/storage/store.py", "if TYPE_CHECKING:\n    import pipeline"),
        ("pipeline/cli/app.py", "from tests.unit.project import test_layout"),
        ("pipeline/cli/app.py", "import json, deploy.render"),
        ("runtime/modeling_lowrank.py", "import safetensors"),
        ("runtime/modeling_lowrank.py", "from schemas.request.config import RunConfig"),
        ("runtime/modeling_lowrank.py", "from runtime.configuration_lowrank import Config"),
        ("runtime/modeling_lowrank.py", "from ..schemas import config"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(violations(PurePath(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "schemas/request/config.py",
            "import json\nfrom pydantic import BaseModel\nimport schemas.errors",
        ),
        (
            "schemas/request/config.py",
            "from .gradients import with_gradients\nfrom . import gradients",
        ),
        ("workers/actors/probe.py", "import ray\nfrom schemas.run.plan import Plan"),
        ("workers/actors/layer_shard.py", "from ray import actor"),
        ("workers/truncation/basis.py", "import torch\nfrom .. import memory"),
        ("pipeline/run.py", "import ray, torch\nfrom workers.actors.layer_shard import LayerShard"),
        ("runtime/modeling_lowrank.py", "import math, torch\nfrom .configuration_lowrank import C"),
    ],
)
def test_an_allowed_import_is_not(path: str, source: str) -> None:
    assert violations(PurePath(path), source) == []


@pytest.mark.parametrize("package", ["workers", "pipeline"])
def test_the_rooms_of_a_package_form_no_circle(package: str) -> None:
    """A room is a folder, or a file that is in none; a circle is an error that names it."""
    imported = defaultdict[str, set[str]](set)
    for path in (ROOT / package).rglob("*.py"):
        room = ".".join(path.relative_to(ROOT).with_suffix("").parts[:2])
        names = re.findall(rf"^\s*from ({package}\.\w+)", path.read_text("utf-8"), re.MULTILINE)
        imported[room] |= {*names} - {room}
    assert len([*TopologicalSorter(imported).static_order()]) >= len(imported) > 1


def test_a_plan_and_a_refusal_need_no_torch_transformers_or_ray() -> None:
    """They take seconds to import, which what a checkpoint holds need not wait for."""
    code = (
        "import sys, pipeline.cli, pipeline.plan\n"
        "import workers.checkpoint.contents, workers.text.documents, workers.checkpoint.fetching\n"
        "print({'torch', 'transformers', 'ray'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"set()\n", b"")
