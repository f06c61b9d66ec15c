"""A finished run and a verification on a terminal."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.cli.printing import whole
from pipeline.report.wording import figure, plain_size
from schemas.printable import printable
from schemas.result.manifest import Check, Compression, OutputResult, RunResult

_MARKS = {
    True: Text("ok", "green"),
    False: Text("FAILED", "bold red"),
    None: Text("not judged", "yellow"),
}


def run_table(result: RunResult) -> RenderableType:
    """A column per ratio, then paths of the checkpoints, seconds by stage and memory."""
    table = Table("", title="Compressed")
    for output in result.outputs:
        table.add_column(f"ratio {output.ratio:g}", justify="right")
    for row in zip(*(_output_column(output) for output in result.outputs), strict=True):
        table.add_row(row[0][0], *(value for _, value in row))
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in result.seconds.items())
    busy = "; ".join(
        f"{stage} {', '.join(f'{share:.0%}' for share in shares)}"
        for stage, shares in result.busy.items()
    )
    workers = ", ".join(plain_size(peak) for peak in result.worker_peak_bytes)
    return Group(
        table,
        *(whole(output.path) for output in result.outputs),
        Text(f"seconds{_of_the_last_round(result)}: {seconds}"),
        *([Text(f"workers busy: {busy}")] if busy else []),
        Text(f"peak memory: driver {plain_size(result.driver_peak_bytes)}, workers {workers}"),
    )


def _of_the_last_round(result: RunResult) -> str:
    several = any(output.compression.cut_before for output in result.outputs)
    return " of the last round" if several else ""


def check_table(checks: Sequence[Check]) -> RenderableType:
    table = Table("check", "", "", title="Verification")
    for check in checks:
        mark = _MARKS[check.passed]
        table.add_row(Text(check.name), mark, Text(printable(check.detail)))
    return table


def _output_column(output: OutputResult) -> list[tuple[str, str]]:
    done = output.compression
    encodings = Counter(matrix.encoding for matrix in done.matrices)
    fallbacks = len(done.fallbacks) + sum(len(matrix.fallbacks) for matrix in done.matrices)
    base, result = output.evaluation.models if output.evaluation else (None, None)
    return [
        ("removed of targeted", f"{done.removed:.2%}"),
        ("targeted before", f"{done.targeted_before:,}"),
        ("targeted after", f"{done.targeted_after:,}"),
        ("parameters before", f"{done.parameters_before:,}"),
        ("parameters after", f"{done.parameters_after:,}"),
        ("weights before", plain_size(done.bytes_before)),
        ("weights after", plain_size(done.bytes_after)),
        ("matrices", ", ".join(f"{count} {kind}" for kind, count in sorted(encodings.items()))),
        ("predicted token loss", _nats(done.nats)),
        ("measured token loss", _nats(output.evaluation.nats if output.evaluation else None)),
        ("perplexity before", f"{base.perplexity:.2f}" if base else "-"),
        ("perplexity after", f"{result.perplexity:.2f}" if result else "-"),
        ("recovery, held-out loss", _recovered(done)),
        *_budget(done),
        ("fallbacks", str(fallbacks)),
        ("could not be cut", str(len(done.given_up)) if done.given_up else "-"),
    ]


def _budget(done: Compression) -> list[tuple[str, str]]:
    """What a budget allowed, and what was found."""
    if (found := done.budget) is None:
        return []
    if not found.trials:
        return [("budget", found.asked.option), ("within", f"{found.reached:,.0f}")]
    predicted = "-" if found.predicted is None else f"ratio {found.predicted:g}"
    tried = (f"{trial.ratio:g}: {_nats(trial.measured)}" for trial in found.trials)
    return [
        ("budget", f"{found.asked.option} ({_nats(found.limit)})"),
        ("predicted optimum", predicted),
        ("measured optimum", f"ratio {done.ratio:g} ({_nats(found.reached)})"),
        ("trials", "\n".join(tried)),
    ]


def _recovered(done: Compression) -> str:
    found = done.recovery
    return "-" if found is None else f"{figure(found.before)} to {figure(found.after)}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f} nats"
