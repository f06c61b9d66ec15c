"""One worker, two workers, and a run killed once in every stage: the SHA-256 of every weight file.

    python -m tests.campaigns.exactness --model DIR --calibration TEXT --work-dir DIR

The driver is a process of its own, killed by SIGKILL; the same command then continues its run.
Exits with 1 if a weight file differs, or if an item finished before a kill was made again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from workers.storage.files import file_sha256
from workers.storage.store import Store

_POLL_S = 0.02


class Kill(NamedTuple):
    """Where to stop a run: a stage, and how to see that it is under way."""

    stage: str
    under_way: Callable[[Path, str], bool]


def _items(prefix: str, count: int) -> Callable[[Path, str], bool]:
    return lambda run_dir, _: sum(1 for _ in Store(run_dir).records(prefix)) >= count


def _logged(text: str) -> Callable[[Path, str], bool]:
    return lambda _, log: text in log


KILLS = (
    Kill("calibrate forward", _logged("calibrate forward: ")),
    Kill("calibrate backward", _logged("calibrate backward: ")),
    Kill("factorise", _items("bases", 30)),
    Kill("truncate", _items("factors", 30)),
    Kill("write", _logged("truncate: ")),
    Kill("verify", _logged("assemble: ")),
)


def main() -> None:
    """Run all three, and compare."""
    options = _parse()
    table = Table("run", "SHA-256 of model.safetensors", title="The same weights")
    table.add_column("items redone", justify="right")
    sums, repeated = [], 0
    for name, workers, kills in (
        ("2 workers", 2, ()),
        ("1 worker", 1, ()),
        ("2 workers, killed in every stage", 2, KILLS),
    ):
        output = options.work_dir / name.replace(" ", "-").replace(",", "")
        redone = sum(_run_until(options, output, workers, kill) for kill in kills)
        redone += _run_until(options, output, workers, None)
        sums.append(file_sha256(output / "model.safetensors"))
        table.add_row(name, sums[-1][:32], str(redone))
        repeated += redone
    Console(width=100).print(table)
    sys.exit(int(len(set(sums)) > 1 or repeated > 0))


def _run_until(options: argparse.Namespace, output: Path, workers: int, kill: Kill | None) -> int:
    """Start or continue a run, kill it in a stage if asked; how many finished items were redone."""
    run_dir = Path(f"{output}.run")
    before = _attempts(run_dir)
    log = Path(f"{output}.log")
    with log.open("w") as stderr:
        process = subprocess.Popen(_command(options, output, workers), stderr=stderr)
        while process.poll() is None:
            if kill and kill.under_way(run_dir, log.read_text()):
                process.kill()
                process.wait()
                print(f"killed in {kill.stage}", file=sys.stderr)
                break
            time.sleep(_POLL_S)
        else:
            if process.returncode or kill:
                sys.exit(f"exit status {process.returncode} (to be killed: {kill}); see {log}")
    return sum(before[key] != found for key, found in _attempts(run_dir).items() if key in before)


def _attempts(run_dir: Path) -> dict[str, str]:
    """The attempt that made each committed item; outputs go when they are published."""
    store = Store(run_dir)
    return {
        record.key: record.attempt
        for prefix in ("moments", "bases", "spectra", "factors")
        for record in store.records(prefix)
    }


def _command(options: argparse.Namespace, output: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "pipeline", "compress", "--ratio", "0.3"),
        *("--model", options.model, "--output", str(output), "--workers", str(workers)),
        *("--calibration", options.calibration, "--calibration-samples", "32"),
        *("--sequence-length", "512", "--gradient-samples", "32", "--gradient-length", "128"),
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
