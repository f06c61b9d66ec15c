"""What an export wrote, as a table."""

from rich.table import Table
from rich.text import Text

from pipeline.report.wording import plain_size
from schemas.printable import printable
from schemas.result.export import Exported


def export_table(done: Exported) -> Table:
    """Return folder and size, and why matrices kept their form."""
    table = Table("", "", title="Exported", show_header=False)
    table.add_row("checkpoint", Text(printable(str(done.path))))
    table.add_row("parameters", f"{done.parameters:,}")
    table.add_row("weights", plain_size(done.nbytes))
    for name, why in done.kept.items():
        table.add_row("kept as it was", Text(printable(f"{name}: {why}")))
    return table
