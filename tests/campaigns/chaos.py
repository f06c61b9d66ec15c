"""Runs under kills of workers, nodes and the driver: the same bytes, and no item made twice.

    python -m tests.campaigns.chaos --runs 24 --seed 0

On a Ray of three nodes (`ray.cluster_utils.Cluster`: a head, where the driver connects, and two of
one CPU), SmolLM2 cut to its first layers is compressed once undisturbed, then once for every seed.
Each seed draws three kills by SIGKILL: of a worker, of a node (a raylet and all its workers, which
is replaced at once or comes back later) and of the driver, each in a stage and at a random moment
of it. Whenever the command ends with another code than 0 it is started again. Exits with 1 if
a weight file differs from the undisturbed run, or an item that was finished was made again.
`--kill head@factorise` kills the head in every run instead; a new cluster takes its place.
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.request.config import RunConfig
from tests.campaigns.chaos_run import (
    DISTURBANCES,
    PUBLISHED,
    STAGES,
    ChaosRun,
    FailedRunError,
    Kill,
    Outcome,
    drawn,
)
from tests.campaigns.nodes import Nodes
from tests.campaigns.small_model import inputs, request

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")


def main() -> None:
    """The undisturbed run, every seed, the tables."""
    options = _parse()
    model, text = options.model, options.calibration
    if model is None or text is None:
        model, text = inputs(options.work_dir, options.layers)
    folder = options.work_dir / f"chaos-{os.getpid()}"
    nodes = Nodes(2)
    try:
        config = request(model.absolute(), text.absolute(), (folder / "undisturbed").absolute())
        calm = ChaosRun(nodes, config, [], {}, 0).run()
        _say(f"undisturbed: {len(calm.items)} items, {sum(calm.seconds.values()):.0f} s")
        outcomes = [
            _disturbed(nodes, config, options, calm, seed)
            for seed in range(options.seed, options.seed + options.runs)
        ]
    except FailedRunError as error:
        sys.exit(str(error))
    finally:
        nodes.close()
    shutil.rmtree(folder)
    sys.exit(_report(outcomes, calm))


def _disturbed(
    nodes: Nodes, config: RunConfig, options: argparse.Namespace, calm: Outcome, seed: int
) -> Outcome:
    """One run of a seed; what it leaves on disk is removed."""
    output = config.output.parent / f"seed-{seed}"
    mine = config.model_copy(update={"output": output})
    start = time.monotonic()
    run = ChaosRun(nodes, mine, options.kill or drawn(seed), calm.seconds, seed)
    outcome = run.run()
    for end in run.ends:
        _say(f"seed {seed}: without a head the driver ended with {end}")
    _say(
        f"seed {seed}: {'; '.join(f'{what} in {stage}' for what, stage in outcome.kills)}: "
        f"{outcome.starts - 1} resumes, {len(outcome.items)} items, {len(outcome.repeated)} "
        f"repeated, {'same' if outcome.sums == calm.sums else 'OTHER'} bytes, "
        f"{time.monotonic() - start:.0f} s"
    )
    shutil.rmtree(output)
    shutil.rmtree(mine.run_folder)
    return outcome


def _report(outcomes: list[Outcome], calm: Outcome) -> int:
    """Print the tables; the exit code."""
    kills = Counter(kill for outcome in outcomes for kill in outcome.kills)
    table = Table("killed in", title="Kills by stage", show_footer=True)
    for what in DISTURBANCES:
        total = sum(count for (kind, _), count in kills.items() if kind == what)
        table.add_column(what, justify="right", footer=str(total))
    for stage in (*STAGES, PUBLISHED):
        table.add_row(stage, *(str(kills[what, stage] or "") for what in DISTURBANCES))
    other = sum(outcome.sums != calm.sums for outcome in outcomes)
    repeated = sum(len(outcome.repeated) for outcome in outcomes)
    totals = Table("runs", str(len(outcomes)), title="What became of the runs")
    totals.add_row("kills", str(kills.total()))
    totals.add_row("resumes", str(sum(outcome.starts - 1 for outcome in outcomes)))
    totals.add_row("items made", str(sum(len(outcome.items) for outcome in outcomes)))
    totals.add_row("items repeated", str(repeated))
    totals.add_row("runs with another SHA-256 of a weight file", str(other))
    console = Console(width=100)
    console.print(table, totals)
    return int(other > 0 or repeated > 0)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _kill(text: str) -> Kill:
    """`WHAT@STAGE`, in the middle of the stage."""
    what, _, stage = text.partition("@")
    if what not in DISTURBANCES or stage not in STAGES:
        raise argparse.ArgumentTypeError(f"{text!r}: one of {DISTURBANCES} @ one of {STAGES}")
    return Kill(what, stage, 0.5)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--layers", type=int, default=6, help="of SmolLM2")
    parser.add_argument("--model", type=Path, help="another checkpoint")
    parser.add_argument("--calibration", type=Path, help="its text")
    parser.add_argument("--kill", type=_kill, action="append", help="WHAT@STAGE, in every run")
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
