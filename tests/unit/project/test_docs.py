"""What the documentation names is there: pages, commands with their options, messages."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli.app import app
from tests.documents import PAGES, ROOT, commands, own_arguments

IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
WORDS = [
    pytest.param(words, id=f"{name}: {' '.join(words)[:60]}")
    for name, page in zip(IDS, PAGES, strict=True)
    for words in commands(page)
    if words[0] == "make" or own_arguments(words) is not None
]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("words", WORDS)
def test_commands_are_understood(words: list[str]) -> None:
    if (arguments := own_arguments(words)) is not None:
        group: Any = typer.main.get_command(app)
        with group.make_context("svdllm", list(arguments)) as context:
            name, command, rest = group.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            command.make_context(name, rest, parent=context).close()
    else:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        target = next(word for word in words[1:] if "=" not in word)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_benchmarks_that_are_named_exist() -> None:
    names = _named(r"python -m (benchmarks\.\w+)")
    assert names
    assert not [name for name in names if find_spec(name) is None]


def test_tests_that_are_named_exist() -> None:
    names = _named(r"`(test_\w+\.py)`")
    assert names
    assert names <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def _named(pattern: str) -> set[str]:
    """What all pages name in such words."""
    return {name for page in PAGES for name in re.findall(pattern, page.read_text("utf-8"))}


def test_messages_of_the_troubleshooting_page_are_in_the_program() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    quoted = [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 20
    pieces = [piece.strip() for quote in quoted for piece in re.split(r"\.\.\.|\bN\b|[()]", quote)]
    said = list(_texts())
    missing = [p for p in pieces if len(p) > 8 and not any(p in text for text in said)]
    assert not missing


def _texts() -> Iterator[str]:
    """Every string of the program, with … for what is filled in."""
    for package in ("schemas", "workers", "pipeline", "runtime"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
