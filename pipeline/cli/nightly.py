"""`svdllm nightly` and `svdllm catalog`."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.cli.exit_codes import exit_codes
from pipeline.request.flags import build
from schemas.errors import RunError
from schemas.location import locate
from schemas.metrics import Outcome
from schemas.request.config import RunConfig
from schemas.request.nightly import NightlyConfig, Order
from schemas.result.manifest import RunResult

_out = Console()


def nightly(
    watch: Annotated[
        str | None, typer.Option(help="Folder, URL or hub id that holds the checkpoints.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder or URL of checkpoints, catalogue and `latest`.")
    ] = None,
    run_dir: Annotated[
        str | None, typer.Option(help="Folder or URL of the runs.", show_default="PREFIX/runs")
    ] = None,
    max: Annotated[  # noqa: A002 (its flag is --max)
        int | None, typer.Option(help="Most checkpoints that are tried.", show_default="1")
    ] = None,
    order: Annotated[
        Order | None, typer.Option(help="Which come first.", show_default="newest")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="Largest increase of perplexity, as 5%.", show_default="no gate"),
    ] = None,
    gate_kl: Annotated[
        float | None, typer.Option(help="Largest KL from the base, in nats a token.")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(help="Failures that put one in quarantine.", show_default="3")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Newest accepted outputs that stay.", show_default="all")
    ] = None,
    retry: Annotated[
        list[str] | None, typer.Option(help="Try this one again. May be repeated.")
    ] = None,
    **flags: Any,
) -> None:
    """Compress, judge and publish the new checkpoints of a training run.

    Exits with 0 where there is nothing to do. Takes the flags of compress, too.
    """
    fresh = flags.pop("fresh")
    own: dict[str, Any] = {"watch": watch, "output": output, "max": max, "order": order}
    own |= {"gate": gate, "gate_kl": gate_kl, "attempts": attempts, "keep": keep}
    own |= {"run_dir": run_dir}
    with exit_codes():
        request = build(NightlyConfig, flags | own | {"retry": retry or None})
        from pipeline.cli.tables.nights import night_table
        from pipeline.nightly.night import nightly as run  # neither torch nor ray

        with contextlib.ExitStack() as session:

            def compress(config: RunConfig) -> RunResult:
                from pipeline.cluster.object_store import run_bytes
                from pipeline.cluster.session import (
                    ray_session,  # only if there is something to do
                )
                from pipeline.compress import compress as run
                from workers.checkpoint.config_file import read_spec

                store = run_bytes(config, read_spec(config.model, config.revision))
                session.enter_context(ray_session(config.cluster, config.numerics.threads, store))
                return run(config, fresh=fresh)

            def tell(outcome: Outcome) -> None:
                from pipeline.metrics import count_nightly

                count_nightly(outcome)

            night = run(request, compress, tell=tell)
        _out.print(night_table(night))
        if failed := night.of("failed"):
            raise RunError(f"{', '.join(sorted({row.name for row in failed}))}: could not be done")


def catalog(
    prefix: Annotated[str, typer.Argument(help="The --output of svdllm nightly.")],
    json: Annotated[bool, typer.Option("--json", help="Pointer and rows as JSON.")] = False,
) -> None:
    """History and trends of the nights: what was tried, what became of it, what `latest` names."""
    with exit_codes():
        from pipeline.cli.tables.nights import catalog_json, catalog_table

        place = locate(prefix)
        if json:
            _out.print_json(catalog_json(place))
        else:
            _out.print(catalog_table(place))


def register(app: typer.Typer, compress: Callable[..., None]) -> None:
    """Add both commands; `nightly` gets every flag of `compress` that it does not define itself."""
    mine = inspect.signature(nightly).parameters
    theirs = inspect.signature(compress).parameters
    shared = [theirs[name] for name in theirs if name not in {*mine, "model"}]
    own = [one for one in mine.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    nightly.__dict__["__signature__"] = inspect.Signature([*own, *shared])
    app.command()(nightly)
    app.command()(catalog)
