"""Commands on a finished checkpoint, or a finished run: `svdllm export`, `quantize`, `verify`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import asks
from pipeline.cli.printing import show
from pipeline.cli.tables.run import check_table, run_table
from schemas.request.export import ExportConfig
from schemas.request.quantization import QuantizationConfig


@asks(ExportConfig)
def export(request: ExportConfig) -> None:
    """A finished checkpoint in another form, or a finished run at another ratio."""
    if request.ratio:
        from pipeline.request.again import at_ratios
        from pipeline.request.preflight import check

        checked = check(at_ratios(request))
        from pipeline.compress import compress  # ray loads only when needed

        show(run_table(compress(checked)))
        return
    from pipeline.cli.tables.export import export_table
    from pipeline.export import export as run

    show(export_table(run(request)))


@asks(QuantizationConfig)
def quantize(request: QuantizationConfig) -> None:
    """Give the linear layers of a compressed checkpoint, or of any other, fewer bits."""
    from pipeline.cli.tables.quantization import quantization_table
    from pipeline.quantize import quantize as run

    show(quantization_table(run(request)))


def verify(
    checkpoint: Annotated[str, typer.Argument(help="A compressed checkpoint: a folder or a URL.")],
    work_dir: Annotated[
        Path | None, typer.Option(help="Of a URL: where its weights may be copied to, for a load.")
    ] = None,
) -> None:
    """Checksums, names and shapes, and a load by plain transformers in a clean process."""
    from workers.checkpoint.stored import at_hand
    from workers.checkpoint.verify import require, verify_checkpoint
    from workers.storage.places import place_of

    with at_hand(place_of(checkpoint), work_dir=work_dir) as (folder, stored):
        checks = verify_checkpoint(folder, published=True, stored=stored)
    show(check_table(checks))
    require(checks, checkpoint)
