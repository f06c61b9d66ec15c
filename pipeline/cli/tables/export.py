"""What an export wrote, as a table."""

from rich.table import Table
from rich.text import Text

from pipeline.report.wording import plain_size
from schemas.printable import printable
from schemas.result.export import Exported

_NARROWER = "MLPs are narrower"
_ZEROS = (
    "zeros take their place: MLPs keep different numbers of neurons (--method width keeps one), "
    "or config.json does not name it"
)


def export_table(done: Exported) -> Table:
    """Return folder and size, what became of MLPs, and why matrices kept their form."""
    table = Table("", "", title="Exported", show_header=False)
    table.add_row("checkpoint", Text(printable(str(done.path))))
    table.add_row("parameters", f"{done.parameters:,}")
    table.add_row("weights", plain_size(done.nbytes))
    if done.narrow is not None:
        table.add_row("neurons that are gone", _NARROWER if done.narrow else _ZEROS)
    for name, why in done.kept.items():
        table.add_row("kept as it was", Text(printable(f"{name}: {why}")))
    return table
