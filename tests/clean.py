"""A Python process in which nothing of this project is installed."""

import os
import subprocess
import sys
from pathlib import Path


def run_clean(script: str, *arguments: object, home: Path) -> None:
    """Run a Python that sees neither this folder nor PYTHONPATH; fail with its output."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *map(str, arguments)],
        cwd=home,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
