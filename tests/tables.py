"""What a terminal shows of a table, and of a command."""

import io

from rich.console import Console, RenderableType
from typer.testing import CliRunner

from pipeline.cli.app import app


def shown(table: RenderableType, width: int = 200) -> str:
    """The text of a table on a terminal of some width, without its colours."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def printed(*arguments: object) -> str:
    """What a command prints that succeeds."""
    asked, wide = [str(argument) for argument in arguments], {"COLUMNS": "200"}
    done = CliRunner().invoke(app, asked, env=wide, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout
