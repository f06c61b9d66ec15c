"""A quantised checkpoint on a terminal."""

from rich.table import Table

from pipeline.report.wording import count, figure, plain_size
from schemas.result.quantization import Quantization


def quantization_table(done: Quantization) -> Table:
    """A row for every size of groups; the title has the bytes."""
    sizes = f"{plain_size(done.bytes_before)} to {plain_size(done.bytes_after)}"
    title = f"{done.scheme}, {done.method}: {sizes}, {done.bits:.2f} bits a quantised weight"
    table = Table(title=title)
    for column in ("numbers that share a scale", "linear layers", "mean relative error"):
        table.add_column(column, justify="right")
    for group, linears in done.groups.items():
        errors = [linear.error for linear in done.linears if linear.group == group]
        table.add_row(str(group or "a whole row"), str(linears), figure(sum(errors) / linears))
    names = {"plain": "rotated factors", "dense": "multiplied out"}
    for encoding, matrices in done.restated.items():
        table.add_row(f"{names[encoding]} first", count(matrices, "matrix", "matrices"), "")
    if done.stay:
        table.add_row("stay as they are", str(len(done.stay)), "")
    return table
