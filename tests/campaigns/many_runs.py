"""Many runs in one driver process on one Ray: what stays in memory after each.

    python -m tests.campaigns.many_runs --runs 50 [--metrics]

Every run has an output and a run directory of its own. When its actors have gone, the anonymous
resident memory is read of the driver, of Ray's own processes (GCS, raylet, agents, monitors) and of
the workers that idle. Exits with 1 if one of them is more than 5 % larger in the last five runs
than in the five after the first five (medians: the C library gives back the memory of a thread that
ended sooner or later), or if actors do not go.

Ray's agent keeps the metrics of every worker that has ended, of whatever program: it collects none
here, but with --metrics.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import ray
from rich.console import Console
from rich.table import Table

from pipeline.cli.demo_inputs import write_texts
from pipeline.compress import compress
from tests.campaigns.small_model import request
from tests.integration.processes import descendants
from tests.integration.support import until
from tests.models import tiny_model

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")

_FIRST = 5
_MOST_GROWTH = 0.05
_ACTORS = ("ray::LayerShard", "ray::Allocator")
_IDLE = "ray::IDLE"


class Memory(NamedTuple):
    """Anonymous resident bytes: of the driver, of Ray's own processes, of the largest worker that
    idles (0 if none does); and how many processes there are.
    """

    driver: int
    ray: int
    idle: int
    processes: int


def main() -> None:
    """Run, measure, print the table."""
    options = _parse()
    work_dir = options.work_dir.absolute()
    model = tiny_model(work_dir / "tiny")
    text, _ = write_texts(work_dir / "text")
    folder = work_dir / f"many-runs-{os.getpid()}"
    os.environ.update(RAY_enable_metrics_collection=str(int(options.metrics)))
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=150 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
    )
    found: list[Memory] = []
    for number in range(options.runs):
        start = time.monotonic()
        compress(request(model, text, folder / f"{number}", workers=2))
        shutil.rmtree(folder)
        until(_actors_gone, "the actors of a run that ended have gone")
        found.append(_measure())
        seconds = time.monotonic() - start
        print(f"{number + 1}: {seconds:.0f} s, {found[-1]}", file=sys.stderr, flush=True)
    ray.shutdown()
    sys.exit(_report(found))


def _report(found: list[Memory]) -> int:
    """Print the table; the exit code."""
    table = Table("after run", title="Anonymous resident memory, MB")
    for heading in ("driver", "Ray's own", "idle worker", "processes"):
        table.add_column(heading, justify="right")
    shown = {1, *range(_FIRST, len(found) + 1, _FIRST), len(found)}
    for number in sorted(shown):
        memory = found[number - 1]
        sizes = (f"{size / 1e6:.1f}" for size in memory[:3])
        table.add_row(str(number), *sizes, str(memory.processes))
    pairs = zip(_median(found[_FIRST : 2 * _FIRST]), _median(found[-_FIRST:]), strict=True)
    growth = [after / before - 1 if before else 0.0 for before, after in pairs]
    table.add_section()
    table.add_row("growth", *(f"{share:+.1%}" for share in growth), "")
    Console(width=90).print(table)
    return int(max(growth) > _MOST_GROWTH)


def _median(found: list[Memory]) -> tuple[float, ...]:
    """Of driver, Ray and idle workers over some runs."""
    return tuple(statistics.median(column) for column in list(zip(*found, strict=True))[:3])


def _actors_gone() -> bool:
    return not any(p.name.startswith(_ACTORS) for p in descendants(os.getpid()))


def _measure() -> Memory:
    processes = [process for process in descendants(os.getpid()) if process.alive]
    idle = [_anonymous(p.pid) for p in processes if p.name.startswith(_IDLE)]
    own = [_anonymous(p.pid) for p in processes if not p.name.startswith(_IDLE)]
    return Memory(_anonymous(os.getpid()), sum(own), max(idle, default=0), len(processes))


def _anonymous(pid: int) -> int:
    """Anonymous resident bytes of a process; 0 if it has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(size) * 1024 for size in re.findall(r"RssAnon:\s+(\d+) kB", text))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--metrics", action="store_true", help="let Ray collect its own metrics")
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    if options.runs < 3 * _FIRST:
        parser.error(f"--runs must be at least {3 * _FIRST}")
    return options


if __name__ == "__main__":
    main()
