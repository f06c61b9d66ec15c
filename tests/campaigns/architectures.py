"""Every check of tests/contract.py on every kind, and docs/architectures.md from what it found.

    python -m tests.campaigns.architectures [KIND...] > docs/architectures.md

With kinds it checks those only. What fails is named on standard error, with its reason, and the
exit status is 1.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers

from pipeline.cli.tables.architectures import together
from tests.contract import CHECKS, Subject
from tests.integration import asker, warm
from tests.kinds import derive
from workers.checkpoint import verify
from workers.model.kinds import TESTED

PAGE = Path(__file__).with_name("architectures.md")

os.fsync = lambda fd: None  # a third of the time, for files that nobody reads again


def check(kind: str) -> list[str]:
    """The checks that a kind passes."""
    passed = []
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(kind, Path(folder))
        for name, function in CHECKS.items():
            try:
                function(subject)
                passed.append(name)
            except Exception as error:  # noqa: BLE001 (it is told, and counts)
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                print(f"{kind}: {name}: {why}", file=sys.stderr, flush=True)
    return passed


def row(kind: str, passed: list[str]) -> str:
    """A row of the table."""
    found = derive(kind)
    cut = "<br>".join(map(together, found.groups))
    marks = f"{len(passed)} of {len(CHECKS)}"
    return f"| `{kind}` | {marks} | {cut} | {', '.join(found.stays)} |"


def main(asked: list[str]) -> int:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, warm.server(Path(folder)):
        verify.INTERPRETER = (sys.executable, asker.__file__)
        found = {kind: check(kind) for kind in asked or TESTED}
    checks = "\n".join(f"{i}. {c.__doc__}".rstrip() for i, c in enumerate(CHECKS.values(), 1))
    rows = "\n".join(row(kind, passed) for kind, passed in found.items())
    print(PAGE.read_text().format(kinds=len(found), checks=checks, rows=rows), end="")
    return int(any(len(passed) < len(CHECKS) for passed in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
