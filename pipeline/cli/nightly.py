"""`svdllm nightly` and `svdllm catalog`."""

import contextlib
from typing import Annotated

import typer

from pipeline.cli.options import Fresh, asks
from pipeline.cli.printing import show, show_json
from schemas.errors import RunError
from schemas.request.config import RunConfig
from schemas.request.nightly import NightlyConfig
from schemas.result.manifest import RunResult

NOTHING_WAITS = 4  # exit code of a look, which deploy/with_gpus.py knows


@asks(NightlyConfig)
def nightly(
    request: NightlyConfig,
    fresh: Fresh = False,
    look: Annotated[
        bool, typer.Option("--look", help="Compress nothing, and exit with 4 if nothing waits.")
    ] = False,
) -> None:
    """Compress, judge and publish the new checkpoints of a training run.

    Exits with 0 if there is nothing to do. Takes the options of compress, too.
    """
    from pipeline.cli.tables.nights import night_table
    from pipeline.nightly.night import nightly as run  # neither torch nor ray

    with contextlib.ExitStack() as session:

        def compress(config: RunConfig) -> RunResult:  # loads torch and ray only if called
            from pipeline.cluster.object_store import run_bytes
            from pipeline.cluster.session import ray_session
            from pipeline.compress import compress as run
            from workers.model.inspection import read_spec

            store = run_bytes(config, read_spec(config.model, config.revision, config.dequantize))
            session.enter_context(ray_session(config.cluster, config.numerics.threads, store))
            return run(config, fresh=fresh)

        night = run(request, None if look else compress)
    show(night_table(night))
    if look and not night.waiting:
        raise typer.Exit(NOTHING_WAITS)
    if failed := night.of("failed"):
        raise RunError(f"{', '.join(sorted({row.name for row in failed}))}: could not be done")


def catalog(
    prefix: Annotated[str, typer.Argument(help="The --output of svdllm nightly.")],
    json: Annotated[bool, typer.Option("--json", help="Pointer and rows as JSON.")] = False,
) -> None:
    """History and trends of the nights: what was tried, what became of it, what `latest` names."""
    from pipeline.cli.tables.nights import catalog_json, catalog_table
    from workers.storage.places import place_of

    place = place_of(prefix)
    if json:
        show_json(catalog_json(place))
    else:
        show(catalog_table(place))
