"""Mutated checkpoints, configurations, texts and requests: each ends in a result or a refusal.

    python -m tests.campaigns.fuzz [--cases 560] [--commands 30] [--seed 0]

Most are checked in this process, as `svdllm compress` does before Ray is loaded; some go through
the whole command. Prints kinds of mutation by outcome. Exits with 1 if one was not
clean: a traceback, a minute without a word, a mark of success without a result, a file outside the
output, a message that a terminal would obey, or Ray in this process.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.request.flags import build, explain
from pipeline.request.preflight import check
from schemas.errors import InputError
from schemas.printable import printable
from schemas.request.config import RunConfig
from tests.campaigns.fuzz_cases import KINDS, Case, write_base
from tests.documents import ROOT
from tests.integration.processes import Command

LIMIT_S = 1800  # ends a hang; no case is judged by how busy the machine is
_CLEAN = ("result", "accepted", "refused", "failed run")
_SETTINGS = (
    *("calibration.samples=4", "calibration.sequence_length=32", "calibration.gradient_samples=4"),
    *("calibration.gradient_length=32", "calibration.segments=2", "cluster.workers=1"),
    "cluster.device=cpu",
)


class Outcome(NamedTuple):
    """How a case ended: one of `_CLEAN`, or what was wrong; and what it said."""

    word: str
    said: str


def cases(base: Path, folder: Path, count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """`count` mutated copies of `base` in turn, each of the next kind; a copy is then removed."""
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        root = folder / f"case-{number}"
        shutil.copytree(base, root)
        case = Case(root, random.Random(f"{seed} {number}"))
        KINDS[kind](case)
        yield kind, case
        shutil.rmtree(root)


def validate(case: Case) -> Outcome:
    """What the command would say before it loads Ray."""
    before = _files(case.root)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    try:
        check(build(RunConfig, _request(case)))
        outcome = Outcome("accepted", "")
    except ValidationError as error:
        outcome = _said("refused", "\n".join(explain(error)))
    except InputError as error:
        outcome = _said("refused", str(error))
    except TimeoutError:
        outcome = Outcome("hang", "")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = Outcome("traceback", repr(error))
    finally:
        signal.alarm(0)
    return outcome if _files(case.root) == before else Outcome("file outside", outcome.said)


def command(case: Case) -> Outcome:
    """The whole command, in a process of its own, which the tests fork."""
    before, request = _files(case.root), _request(case)
    flags = ["--model", request["model"], "--ratio", case.ratio, "--output", request["output"]]
    flags += ["--calibration", request["calibration"]]
    flags += [part for setting in _SETTINGS for part in ("--set", setting)]
    if any("\0" in flag for flag in flags):
        return validate(case)  # no command line can hold it
    code, said = _run(["compress", *map(str, flags)])
    if code is None:
        return Outcome("hang", said)
    output = Path(str(request["output"]))
    success = [path for path in case.root.rglob("_SUCCESS") if path.parent == output]
    if "Traceback" in said or code not in (0, 2, 3):
        return Outcome("traceback", said)
    if bool(success) != (code == 0):
        return Outcome("partial success", said)
    mine = (output, Path(f"{output}.run"))
    after = {
        path: state
        for path, state in _files(case.root).items()
        if not any(place in (path, *path.parents) for place in mine)
    }
    kept = {path: state for path, state in before.items() if path in after or path not in mine}
    if after != kept:
        return Outcome("file outside", said)
    return _said({0: "result", 2: "refused", 3: "failed run"}[code], said)


def _run(arguments: list[str]) -> tuple[int | None, str]:
    """Exit code and output of a command; no code if it was silent for LIMIT_S, and is killed."""
    process = Command(arguments, ROOT, {"HF_HUB_OFFLINE": "1"})
    size, since = 0, time.monotonic()
    while (code := process.code) is None and time.monotonic() - since < LIMIT_S:
        time.sleep(0.05)
        if (now := len(process.printed + process.log)) > size:
            size, since = now, time.monotonic()
    process.close()
    return code, process.printed + process.log


def clean(outcome: Outcome) -> bool:
    """Whether a case ended as one must."""
    return outcome.word in _CLEAN


def _request(case: Case) -> dict[str, str | list[str]]:
    output = case.output if "://" in case.output else str(case.root / (case.output or "out"))
    return {
        "model": str(case.model),
        "ratio": case.ratio,
        "output": output,
        "calibration": str(case.root / case.text),
        "settings": list(_SETTINGS),
    }


def _said(word: str, said: str) -> Outcome:
    """The outcome, where what it said is a sentence that a terminal does not obey."""
    lines = [line.strip() for line in said.strip().split("\n")]
    fine = word == "result" or all(line and printable(line) == line for line in lines)
    return Outcome(word if fine else "unprintable", said)


def _files(root: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below a folder, not following links."""
    found = {}
    for path in root.rglob("*"):
        if not path.is_dir():
            state = path.lstat()
            found[path] = (state.st_size, state.st_mtime_ns)
    return found


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20 * len(KINDS))
    parser.add_argument("--commands", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, counts = Console(width=110), defaultdict[str, Counter[str]](Counter)
    unclean: list[tuple[str, int, Outcome]] = []

    def note(kind: str, number: int, outcome: Outcome) -> None:
        counts[kind][outcome.word] += 1
        if not clean(outcome):
            unclean.append((kind, number, outcome))

    with tempfile.TemporaryDirectory(prefix="svdllm-fuzz-") as name:
        folder = Path(name)
        write_base(folder / "base")
        for number, (kind, case) in enumerate(
            cases(folder / "base", folder, options.cases, options.seed)
        ):
            note(kind, number, validate(case))
        if "ray" in sys.modules:
            unclean.append(("all", 0, Outcome("loaded", "ray")))
        for number, (kind, case) in enumerate(
            cases(folder / "base", folder, options.commands, options.seed + 1)
        ):
            note(f"command, {kind}", number, command(case))
    _print(console, counts, unclean)
    sys.exit(1 if unclean else 0)


def _print(
    console: Console, counts: dict[str, Counter[str]], unclean: list[tuple[str, int, Outcome]]
) -> None:
    words = sorted({word for counter in counts.values() for word in counter})
    table = Table("mutation", title=f"{sum(c.total() for c in counts.values())} cases")
    for word in words:
        table.add_column(word, justify="right")
    for kind in counts:
        table.add_row(kind, *(str(counts[kind][word] or "") for word in words))
    table.add_section()
    totals = (sum(counter[word] for counter in counts.values()) for word in words)
    table.add_row("all", *map(str, totals))
    console.print(table)
    for kind, number, outcome in unclean:
        console.print(Text(f"{kind}, case {number}: {outcome.word}: {printable(outcome.said)}"))


if __name__ == "__main__":
    main()
