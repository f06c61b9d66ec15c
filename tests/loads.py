"""Load checks in this process, which has imported all that takes a clean one seconds."""

import runpy
import warnings
from pathlib import Path

import pytest
from transformers.utils import logging

from schemas.result.manifest import Check
from tests.writing import run_path
from workers.checkpoint import load_check, verify


def load_here(patch: pytest.MonkeyPatch) -> None:
    """Let `verify` check loads in this process.

    What the script says of logs is left out, and models write little.
    """
    patch.setattr(logging, "set_verbosity_error", lambda: None)
    patch.setattr(logging, "disable_progress_bar", lambda: None)

    def rows(given: list[str], _: float) -> list[Check]:
        folder, depth, memory, *more = given
        with warnings.catch_warnings():  # which only tests take for errors
            warnings.simplefilter("ignore")
            found = [*load_check.main(Path(folder), depth, int(memory), "--save" in more, None)]
        return [verify._check(row) for row in found]

    patch.setattr(verify, "_clean_process", rows)
    patch.setattr(runpy, "run_path", run_path)
