"""Which statistics a truncation needs, and where in the model they are taken.

A forward moment is E[x x^T] of a layer's inputs, or E[y y^T] of its outputs without the bias. A
backward moment is E[g g^T] of the gradient at the layer's output, or E[(W^T g)(W^T g)^T] of its own
contribution to the input gradient. Only the smaller side of W is ever needed, except by truncations
defined on the full X^T X, as in the papers. Scaled truncations take only the diagonal of a moment:
of rows sqrt|x|, which is E|x|, or of the rows of a window's dL/dW, which is its Fisher information.
"""

from typing import Literal

from schemas.base import Schema
from schemas.model.spec import MatrixSpec, Side
from schemas.request.methods import TRUNCATIONS, Truncation

Pass = Literal["forward", "backward"]
Rows = Literal["values", "roots", "weight-gradient"]


class Tap(Schema):
    """A place where one second moment is accumulated, shared by the matrices that read it.

    `module` is a linear layer whose input or output is observed, `rows` (start, stop) are those of
    its output if only some are. A backward tap always gives tr G; with `moment` false it gives
    nothing else. `of` says which rows are observed; all but values give a diagonal alone.
    """

    name: str
    layer: int
    module: str
    direction: Pass
    side: Side
    size: int
    moment: bool = True
    rows: tuple[int, int] | None = None
    of: Rows = "values"

    @property
    def shape(self) -> tuple[int, int]:
        """Of the moment: a square, or its diagonal as one row."""
        return (self.size if self.of == "values" else 1), self.size

    @property
    def elements(self) -> int:
        """Numbers in the moment."""
        return self.shape[0] * self.shape[1]


def forward_tap(matrix: MatrixSpec, truncation: Truncation) -> Tap:
    """Return the forward moment of `matrix`: matrices that read the same X share X^T X."""
    row = TRUNCATIONS[truncation]
    shared = f"layers.{matrix.layer}.{matrix.reads}.input"
    if row.scaled:
        name = f"{shared}-magnitudes"
        return _tap(name, matrix, "forward", "input", matrix.in_features).model_copy(
            update={"of": "roots"}
        )
    if row.full_gram or matrix.side == "input":
        return _tap(shared, matrix, "forward", "input", matrix.in_features)
    return _tap(f"{matrix.name}.output", matrix, "forward", "output", matrix.out_features)


def backward_tap(matrix: MatrixSpec, truncation: Truncation) -> Tap:
    """Return the gradient moment of `matrix`, or its trace if the truncation is not weighed."""
    if TRUNCATIONS[truncation].scaled:
        name = f"{matrix.name}.weight-gradient"
        return _tap(name, matrix, "backward", "input", matrix.in_features).model_copy(
            update={"of": "weight-gradient"}
        )
    weighed = TRUNCATIONS[truncation].weighed
    name = f"{matrix.name}.{matrix.side}-gradient" if weighed else f"{matrix.name}.gradient-trace"
    return _tap(name, matrix, "backward", matrix.side, matrix.small, moment=weighed)


def taps(matrices: tuple[MatrixSpec, ...], truncation: Truncation, gradients: bool) -> list[Tap]:
    """Return every tap of a run, each once, in the order of the matrices."""
    found: dict[str, Tap] = {}
    for matrix in matrices:
        tap = forward_tap(matrix, truncation)
        found.setdefault(tap.name, tap)
        if gradients:
            tap = backward_tap(matrix, truncation)
            found[tap.name] = tap
    return list(found.values())


def _tap(
    name: str, matrix: MatrixSpec, direction: Pass, side: Side, size: int, moment: bool = True
) -> Tap:
    at_input = direction == "forward" and side == "input"  # where there are no rows of its own
    return Tap(
        name=name,
        layer=matrix.layer,
        module=matrix.module,
        direction=direction,
        side=side,
        size=size,
        moment=moment,
        rows=(matrix.rows.start, matrix.rows.stop) if matrix.split and not at_input else None,
    )
