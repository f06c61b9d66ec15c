"""`svdllm report`: the page of one run made anew, or several runs compared."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.files import require_files, write_file
from pipeline.cli.printing import show, whole
from schemas.errors import ConfigError
from workers.checkpoint.names import MANIFEST, REPORT_PAGE


def _require_no_own_page(output: Path) -> None:
    """Raises ConfigError if a page would replace that of a checkpoint, which its manifest lists."""
    if output.name == REPORT_PAGE and (output.absolute().parent / MANIFEST).exists():
        raise ConfigError(
            f"{output}: the checkpoint's own page, whose checksum is kept; name another --output"
        )


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Checkpoints or run directories; folders or URLs."),
    ],
    output: Annotated[Path, typer.Option(help="The page that is written.")] = Path("report.html"),
) -> None:
    """One run: its report anew. Several: ratio, perplexity, size and speed side by side."""
    from pipeline.report.compare import comparison, terminal_table  # neither torch nor ray
    from pipeline.report.page import render_report
    from pipeline.report.read import read_reported

    require_files(output)
    _require_no_own_page(output)
    found = read_reported(runs)
    if len(found) == 1:
        [only] = found
        page = render_report(only.compression, only.evaluation, only.facts)
    else:
        page = comparison(found, output)
    write_file(output, page)
    show(terminal_table(found))
    show(whole(output))
