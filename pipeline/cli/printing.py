"""What a command prints: tables that fit the terminal, and paths that stay whole."""

from rich.console import Console, RenderableType
from rich.text import Text

from schemas.printable import printable

_out = Console()


def show(shown: RenderableType) -> None:
    """Print something as wide as the terminal, but for the lines that may not be broken."""
    _out.print(shown, crop=False)


def show_json(text: str) -> None:
    _out.print_json(text)


def whole(line: object) -> Text:
    """Return a line that is not broken, however long it is: a path is to be copied."""
    return Text(printable(str(line)), no_wrap=True, overflow="ignore")
