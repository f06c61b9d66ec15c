"""What a terminal shows of a table."""

import io

from rich.console import Console, RenderableType


def shown(table: RenderableType, width: int = 200) -> str:
    """The text of a table on a terminal of some width, without its colours."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()
