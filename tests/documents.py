"""The documentation as the tests read it: its pages, and the code blocks in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def commands(page: Path) -> list[list[str]]:
    """Every shell command of a page as words, without what stands around it."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def own_arguments(words: list[str]) -> list[str] | None:
    """What a shell command gives to this program; None if it does not start it."""
    if Path(words[0]).name == "svdllm":
        return words[1:]
    starts = (at for at in range(len(words)) if words[at : at + 3] == ["python", "-m", "pipeline"])
    at = next(starts, None)
    return None if at is None else words[at + 3 :]
