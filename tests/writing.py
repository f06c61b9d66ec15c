"""What models write in tests that look at its beginning alone: a few tokens, not 64."""

import runpy
from typing import Any

TOKENS = 8
_SAMPLE_TOKENS = 4
_run = runpy.run_path


def run_path(*arguments: Any, **named: Any) -> dict[str, Any]:
    """`runpy.run_path` for a load check, which runs the file of continuations by its path."""
    found = _run(*arguments, **named)
    if "SAMPLE_TOKENS" in found:
        found["SAMPLE_TOKENS"] = _SAMPLE_TOKENS
        found["written"].__globals__["TOKENS"] = TOKENS
    return found
