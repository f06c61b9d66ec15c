"""`svdllm architectures` as a table."""

from collections.abc import Iterable, Sequence
from itertools import takewhile

from rich.table import Table

from workers.model.architectures import Architecture


def architectures_table(found: Iterable[Architecture]) -> Table:
    """A row a kind; a line for matrices that read one input. What is not in all layers says so."""
    table = Table(show_lines=True)
    for heading in ("kind, layers", "what is cut", "what stays"):
        table.add_column(heading, overflow="fold")
    for one in found:
        cut = [together(paths) + _where(number, one) for paths, number in one.groups.items()]
        stays = [name + _where(number, one) for name, number in one.stays.items()]
        table.add_row(f"{one.kind}\n{one.path}", "\n".join(cut), ", ".join(stays))
    return table


def _where(number: int, one: Architecture) -> str:
    return f" ({number} of {one.layers} layers)" if number < one.layers else ""


def together(paths: Sequence[str]) -> str:
    """Write paths with what they begin with only once: self_attn: q_proj, k_proj, v_proj."""
    owners = [path.split(".")[:-1] for path in paths]
    levels = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))
    shared = ".".join(parts[0] for parts in levels)
    names = ", ".join(path.removeprefix(f"{shared}.") for path in paths)
    return f"{shared}: {names}" if shared else names
