"""Which statistics a truncation needs, and where in the model they are taken.

A forward moment is E[x x^T] of a layer's inputs, or E[y y^T] of its outputs without the bias. A
backward moment is E[g g^T] of the gradient at the layer's output, or E[(W^T g)(W^T g)^T] of its own
contribution to the input gradient. Only the smaller side of W is ever needed, except by truncations
defined on the full X^T X, as in the papers, and by the removal of neurons. Where that side is the
output, the diagonal of E[x x^T] is taken, too, if the moment is shrunk toward it. Scaled
truncations take only diagonals: of rows sqrt|x|, which is E|x|, or of the rows of a window's dL/dW,
which is its Fisher information.
"""

from typing import Literal

from schemas.base import Schema
from schemas.model.spec import MatrixSpec, Side
from schemas.request.methods import TRUNCATIONS, Truncation

Pass = Literal["forward", "backward"]
Rows = Literal["values", "features", "roots", "weight-gradient"]


class Tap(Schema):
    """A place where one second moment is accumulated, shared by the matrices that read it.

    `module` is a linear layer whose input or output is observed, `rows` (start, stop) are those of
    its output if only some are. A backward tap always gives tr G; with `moment` false it gives
    nothing else. `of` says which rows are observed; all but values give a diagonal alone, features
    that of the values.
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
    if row.scaled:
        return _of_input(matrix, "input-magnitudes", "roots")
    if row.full_gram or matrix.side == "input":
        return _of_input(matrix, "input", "values")
    return _tap(f"{matrix.name}.output", matrix, "forward", "output")


def features_tap(matrix: MatrixSpec, truncation: Truncation) -> Tap | None:
    """Return the diagonal of the input moment of `matrix`; None if its forward moment has it, or is
    not shrunk.
    """
    if matrix.side == "input" or not TRUNCATIONS[truncation].weighed:
        return None
    return _of_input(matrix, "input-features", "features")


def neurons_tap(matrix: MatrixSpec) -> Tap:
    """Return the moment E[h h^T] of the neurons that `matrix` reads."""
    return _of_input(matrix, "input", "values")


def backward_tap(matrix: MatrixSpec, truncation: Truncation) -> Tap:
    """Return the gradient moment of `matrix`, or its trace if the truncation is not weighed."""
    row = TRUNCATIONS[truncation]
    if row.scaled:
        name = f"{matrix.name}.weight-gradient"
        return _tap(name, matrix, "backward", "input").model_copy(update={"of": "weight-gradient"})
    what = f"{matrix.side}-gradient" if row.weighed else "gradient-trace"
    return _tap(f"{matrix.name}.{what}", matrix, "backward", matrix.side, moment=row.weighed)


def taps_of(
    matrix: MatrixSpec, truncation: Truncation, gradients: bool, ranks: bool = True
) -> list[Tap]:
    """Return the taps of one matrix. Without `ranks` only neurons may go: what reads them takes
    their moment and its gradients, any other matrix nothing.
    """
    reads = matrix.neurons == matrix.path
    found = [forward_tap(matrix, truncation), features_tap(matrix, truncation)] if ranks else []
    if reads:
        found.append(neurons_tap(matrix))
    if gradients and (ranks or reads):
        found.append(backward_tap(matrix, truncation))
    return [tap for tap in found if tap]


def taps(
    matrices: tuple[MatrixSpec, ...], truncation: Truncation, gradients: bool, ranks: bool = True
) -> list[Tap]:
    """Return every tap of a run, each once, in the order of the matrices."""
    found: dict[str, Tap] = {}
    for matrix in matrices:
        for tap in taps_of(matrix, truncation, gradients, ranks):
            found.setdefault(tap.name, tap)
    return list(found.values())


def _of_input(matrix: MatrixSpec, what: str, of: Rows) -> Tap:
    name = f"layers.{matrix.layer}.{matrix.reads}.{what}"
    return _tap(name, matrix, "forward", "input").model_copy(update={"of": of})


def _tap(name: str, matrix: MatrixSpec, direction: Pass, side: Side, moment: bool = True) -> Tap:
    at_input = direction == "forward" and side == "input"  # where there are no rows of its own
    return Tap(
        name=name,
        layer=matrix.layer,
        module=matrix.module,
        direction=direction,
        side=side,
        size=matrix.in_features if side == "input" else matrix.out_features,
        moment=moment,
        rows=(matrix.rows.start, matrix.rows.stop) if matrix.split and not at_input else None,
    )
