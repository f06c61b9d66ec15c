"""A month of nights over a training run: half-written, corrupt, equal and bad checkpoints, kills.

    python -m tests.campaigns.month --seed 0

Thirty nights on a Ray of two nodes of one CPU, each night `svdllm nightly` in a process of its own,
over tiny models. The seed draws in which night a checkpoint appears and of which kind it is: good,
half written (whole two nights later), corrupt (a weight is not a number), equal to an earlier one
or worse than the gate allows; one is removed again. Two nights are started twice at once; three are
killed by SIGKILL, each in another stage. At the end catalogue, pointer and published outputs are
held against what was drawn, and every item of a killed run against who made it first. Exits with 1
if something else happened.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.nightly import catalog
from tests.campaigns.month_run import (
    ARRIVALS,
    ATTEMPTS,
    NIGHTS,
    RATIO,
    STAGES,
    TWICE,
    Happened,
    Month,
    draw,
)
from tests.campaigns.nodes import Nodes
from tests.nights import pointed
from workers.checkpoint.names import SUCCESS

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")


def wrong(month: Month, nights: list[Happened]) -> list[str]:
    """In what catalogue, pointer and outputs differ from what was drawn."""
    rows = catalog.read(month.prefix)
    kinds = {name: kind for kind, name in month.drawn.arrivals.values()}
    of = {kind: {name for name in kinds if kinds[name] == kind} for kind in set(ARRIVALS)}
    events = {
        event: {r.name for r in rows if r.event == event} for event in {r.event for r in rows}
    }
    counts = Counter(row.event for row in rows)
    sound = of["good"] | of["half"]
    newest = max(sound | of["equal"], key=lambda name: int(name.rpartition("-")[2]))
    killed = sum(night.codes == (-9,) for night in nights)
    published = {row.path for row in rows if row.event == "published"}
    there = {
        path.parent.relative_to(month.prefix).as_posix()
        for path in (month.prefix / "checkpoints").glob(f"*/*/{SUCCESS}")
    }
    rejected = {row.path for row in rows if row.event == "rejected"}
    expected = {
        "published": (events.get("published"), sound),
        "equal to one that is there": (events.get("duplicate"), of["equal"]),
        "rejected": (events.get("rejected"), of["bad"]),
        "failed, then in quarantine": (events.get("quarantined"), of["corrupt"]),
        "failures": (counts["failed"], ATTEMPTS * len(of["corrupt"])),
        "starts": (
            counts["started"],
            len(sound) + len(of["bad"]) + ATTEMPTS * len(of["corrupt"]) + killed,
        ),
        "published once each": (counts["published"], len(sound)),
        "outputs": (there, published | rejected),
        "latest": (pointed(month.prefix), {RATIO: newest}),
        "kills": (killed, len(STAGES)),
        "nights started twice": (sum(n.codes[1:] == (3,) for n in nights), TWICE),
        "the last night": (nights[-1], Happened("", (0,), [])),
        "run directories left": (
            {path.name.rpartition("-")[0] for path in (month.prefix / "runs").iterdir()},
            of["corrupt"],
        ),
        "items of killed runs that were gone on with": (month.seen_again, month.kept),
        "items made again": (month.repeated, set()),
    }
    return [
        f"{what}: {found}, expected {meant}"
        for what, (found, meant) in expected.items()
        if found != meant
    ]


def main() -> None:
    """Every night, the table, what was held against what."""
    options = _parse()
    folder = (options.work_dir / f"month-{os.getpid()}").absolute()
    table = Table("night", "in the source", "", "exit", "in the catalogue", "latest")
    nodes, happened = Nodes(2), []
    try:
        month = Month(folder, nodes.address, draw(options.seed))
        for number in range(1, NIGHTS + 1):
            appeared, night = month.night(number)
            happened.append(night)
            said = ", ".join(f"{row.name.rpartition('-')[2]} {row.event}" for row in night.rows)
            codes = ", ".join(map(str, night.codes))
            latest = pointed(month.prefix).get(RATIO, "")
            table.add_row(str(number), appeared, night.disturbed, codes, said, latest)
            print(f"{number}: {appeared}; {night.disturbed}; {codes}; {said}", file=sys.stderr)
        found = wrong(month, happened)
    finally:
        nodes.close()
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{len(month.kept)} items were there when their runs were killed, {len(month.repeated)} of "
        "them were made again"
    )
    console.print("\n".join(found) or "catalogue, pointer and outputs are as drawn")
    shutil.rmtree(folder)
    sys.exit(int(bool(found)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
