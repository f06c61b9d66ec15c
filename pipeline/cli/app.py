"""`svdllm`, and `python -m pipeline`: turns flags into one schema and errors into exit codes."""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.columns import Columns
from rich.text import Text

from pipeline.cli import interrupts
from pipeline.cli.checkpoint import export, quantize, verify
from pipeline.cli.exit_codes import Commands
from pipeline.cli.files import require_files, write_file
from pipeline.cli.nightly import catalog, nightly
from pipeline.cli.options import Fresh, asks
from pipeline.cli.printing import show, show_json, whole
from pipeline.cli.report import report
from pipeline.cli.tables.plan import plan_table
from pipeline.cli.tables.run import run_table
from pipeline.cli.tables.status import status_table
from pipeline.versions import versions
from schemas.errors import ConfigError
from schemas.request.adoption import AdoptionConfig
from schemas.request.bench import BenchConfig
from schemas.request.comparison import ComparisonConfig
from schemas.request.compression import CompressionConfig
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.settings import settings
from schemas.result.evaluation import EvaluationReport
from schemas.result.tasks import TaskReport
from workers.process.logs import LOG_FORMAT, LogFormat, set_up_logging

app = typer.Typer(
    cls=Commands,
    help="Compress large language models by activation-aware SVD, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_ANY_RATIO = (0.2,)
# They do not choose what is cut.
_NO_CHOICE = tuple(
    setting.path
    for setting in settings(CompressionConfig)
    if setting.path != "ratio_by" and not setting.path.startswith("targets.")
)


def _say_versions(asked: bool) -> None:
    if asked:
        show(Text("\n".join(f"{name} {found}" for name, found in versions().items())))
        raise typer.Exit


@app.callback()
def logs(
    log_format: Annotated[
        LogFormat, typer.Option(envvar=LOG_FORMAT, help="Of the log: text, or JSON lines.")
    ] = "text",
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_say_versions,
            is_eager=True,
            help="Print the versions of this program and of what it builds on.",
        ),
    ] = False,
) -> None:
    if log_format == "json":  # in the environment, which workers of an embedded Ray inherit
        os.environ[LOG_FORMAT] = log_format
        set_up_logging()


@app.command()
@asks(RunConfig)
def compress(request: RunConfig, fresh: Fresh = False) -> None:
    """Compress a checkpoint at one or several ratios. The same command continues a stopped run."""
    from pipeline.request.preflight import check  # loads torch, not ray

    checked = check(request)
    if request.any_architecture:
        from pipeline.cli.tables.architectures import architectures_table
        from workers.model.architectures import describe

        show(architectures_table([describe(checked.spec)]))
    from pipeline.compress import compress as run  # ray loads only when needed

    show(run_table(run(checked, fresh=fresh)))


@app.command()
@asks(AdoptionConfig)
def recover(request: AdoptionConfig, fresh: Fresh = False) -> None:
    """Train the factors of a finished checkpoint against its base, into a new one."""
    from pipeline.request.adopt import adopting
    from pipeline.request.preflight import check

    checked = check(adopting(request))
    from pipeline.compress import compress as run  # ray loads only when needed

    show(run_table(run(checked, fresh=fresh)))


@app.command()
@asks(CompressionConfig, without=_NO_CHOICE, ratio=_ANY_RATIO)
def architectures(
    request: CompressionConfig,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint or its config.json, instead of the list.")
    ] = None,
) -> None:
    """The kinds of models that are tested, or what is cut of one, what shares an input, what stays.

    Nothing is read but config.json. What --targets and the like choose is shown of a model.
    """
    from pipeline.cli.tables.architectures import architectures_table
    from workers.model.architectures import derive
    from workers.model.kinds import TESTED

    if model is not None:
        show(architectures_table([derive(model, request)]))
    elif request != CompressionConfig(ratio=_ANY_RATIO):
        raise ConfigError("a choice is of the matrices of one model; name it with --model")
    else:
        show(Columns(TESTED))


@app.command()
@asks(RunConfig, without=("cluster.device",), output=Path("unused"))  # --gpus says it
def plan(
    request: RunConfig,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs to plan for.", show_default="this host's CPU")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Of them, on each node.", show_default="8, or all")
    ] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Of each GPU, as 80GB or 80GiB.")] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Of each node, as 1TB.", show_default="128GB a GPU")
    ] = None,
    gpu_type: Annotated[
        str | None, typer.Option(help="h100, h200, a100 or l40s; others have no times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
) -> None:
    """Shards, waves, memory, disk, flops, bytes and time, from config.json alone.

    Nothing is computed. GPUs that are described need not exist, and --model may be a config.json.
    """
    from pipeline.plan.machines import Machines
    from pipeline.plan.planner import plan_checkpoint

    machines = Machines(gpus, gpus_per_node, gpu_memory, host_memory, gpu_type)
    found = plan_checkpoint(request, machines)
    if json:
        show_json(found.model_dump_json())
    else:
        show(plan_table(found))


@app.command()
@asks(EvaluationConfig)
def evaluate(
    request: EvaluationConfig,
    json: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    model_index: Annotated[
        Path | None, typer.Option(help="Also write the figures to this file, as a card has them.")
    ] = None,
) -> None:
    """Perplexity, size and a sample, or any tasks of lm-eval, side by side with the base."""
    require_files(json, model_index, request.tasks.samples)
    report: EvaluationReport | TaskReport
    if request.tasks.names:
        from pipeline.cli.tables.tasks import tasks_table
        from pipeline.tasks import evaluate_tasks

        report = evaluate_tasks(request)
        table = tasks_table(report)
    else:
        from pipeline.cli.tables.evaluation import evaluation_table
        from pipeline.evaluate import evaluate as run

        report = run(request)
        table = evaluation_table(report)
    if json:
        write_file(json, report.model_dump_json(indent=2) + "\n")
    if model_index:
        from pipeline.report.model_index import model_index_yaml

        write_file(model_index, model_index_yaml(request.checkpoint, report))
    show(table)


@app.command()
@asks(ComparisonConfig, without=("tasks.samples",))  # which are of one checkpoint
def compare(
    request: ComparisonConfig,
    json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """Methods at equal parameters, or bits and ranks at one size; started again, it continues."""
    from pipeline.cli.tables.comparison import comparison_table
    from pipeline.compare import PAGE
    from pipeline.compare import compare as run

    report = run(request)
    if json:
        show_json(report.model_dump_json())
    else:
        show(comparison_table(report))
        if (page := request.output / PAGE).exists():
            show(whole(page))


@app.command()
@asks(BenchConfig)
def bench(
    request: BenchConfig,
    json: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Also write it to this file as a page with plots.")
    ] = None,
) -> None:
    """Speed and memory as served, side by side with the base; models take turns in one run."""
    require_files(json, page)
    from pipeline.bench import bench as run
    from pipeline.cli.tables.bench import bench_table

    report = run(request)
    if json:
        write_file(json, report.model_dump_json(indent=2) + "\n")
    if page:
        from pipeline.report.speed import bench_page

        write_file(page, bench_page(report))
    show(bench_table(report))


app.command()(export)
app.command()(quantize)
app.command()(verify)


@app.command()
def status(
    run_dir: Annotated[str, typer.Argument(help="A run directory (OUTPUT.run), or its URL.")],
) -> None:
    """What a run has finished, and what is left."""
    from pipeline.run_directory.status import read_status
    from workers.storage.places import place_of

    show(status_table(read_status(place_of(run_dir))))


@app.command()
def demo(
    work_dir: Annotated[Path, typer.Option(help="Folder for model, text and results.")] = Path(
        "build/demo"
    ),
) -> None:
    """Compress SmolLM2-135M-Instruct at 20 %, compare and verify it."""
    from pipeline.cli.demo import run_demo

    run_demo(work_dir)


app.command()(nightly)
app.command()(catalog)
app.command()(report)


def main() -> None:
    """Run the command once everything it needs at the start is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress display is enough: ours
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: no table is lost
    set_up_logging()
    interrupts.install()
    app()
