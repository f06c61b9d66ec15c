"""A plot of the report as a picture for the docs: an SVG file that needs no page around it."""

from pathlib import Path

from markupsafe import Markup

from workers.storage.files import write_text

_STYLE = (
    "text{font:12px sans-serif;fill:#14222a}.tick{font-size:11px;fill:#4d5f69}"
    ".grid{stroke:#e3eaed}.mark{stroke-width:1.3;fill-opacity:.55}"
    ".named{font-size:10px;paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".s0{fill:#1a6f86;stroke:#1a6f86}.s1{fill:#c4622d;stroke:#c4622d}"
    ".s2{fill:#6a58b0;stroke:#6a58b0}.s3{fill:#3f7f3a;stroke:#3f7f3a}"
    ".series{fill:none;stroke-width:2}"  # after the colours, which fill marks
)


def write_picture(path: Path, drawn: Markup) -> None:
    """Write a plot of up to four series, on white."""
    head, _, body = drawn.partition(">")
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    namespace = 'xmlns="http://www.w3.org/2000/svg"'
    write_text(path, f"{head} {namespace}><style>{_STYLE}</style>{ground}{body}\n")
