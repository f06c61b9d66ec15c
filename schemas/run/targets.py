"""Which matrices of a model are cut, and which of them share a budget."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from schemas.errors import ConfigError
from schemas.model.spec import MatrixSpec, ModelSpec
from schemas.request.config import CompressionConfig

_ROUTERS = ("router", "gate")  # names by which families call what chooses experts


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a matrix: some consecutive parts of its dotted name, as mlp.down_proj
    or layers.0.*, where * stands for anything.
    """
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def select(config: CompressionConfig, spec: ModelSpec) -> ModelSpec:
    """Return the model with only those of its matrices that are to be cut.

    Routers are not among them. Raises ConfigError if a pattern names no matrix, or if none is left.
    """
    asked = config.targets
    names = [matrix.name for matrix in spec.matrices]
    for pattern in (*asked.only, *asked.ignore, *config.ratio_by):
        if not any(matches(name, pattern) for name in names):
            raise ConfigError(f"{pattern!r} names no matrix; {_there(spec.matrices)}")
    exempt = [*asked.ignore, *(p for p, ratio in config.ratio_by.items() if not ratio), *_ROUTERS]
    layers = range(asked.skip_first, spec.layers - asked.skip_last)
    chosen = tuple(
        matrix
        for matrix in spec.matrices
        if matrix.layer in layers
        and matrix.small >= asked.min_features
        and any(matches(matrix.name, pattern) for pattern in asked.only)
        and not any(matches(matrix.name, pattern) for pattern in exempt)
    )
    if not chosen:
        raise ConfigError(f"no matrix is left to be cut; {_there(spec.matrices)}")
    return spec.model_copy(update={"matrices": chosen})


def budgets(
    config: CompressionConfig, matrices: Iterable[MatrixSpec], ratio: float
) -> list[tuple[float, list[MatrixSpec]]]:
    """Return the matrices that share a budget, with the ratio of each: those of a pattern of
    `ratio_by` (the first that names a matrix counts), and all others.
    """
    groups: dict[str | None, list[MatrixSpec]] = {}
    for matrix in matrices:
        own = (pattern for pattern in config.ratio_by if matches(matrix.name, pattern))
        groups.setdefault(next(own, None), []).append(matrix)
    return [
        (ratio if pattern is None else config.ratio_by[pattern], group)
        for pattern, group in groups.items()
    ]


def _there(matrices: Sequence[MatrixSpec]) -> str:
    paths = dict.fromkeys(matrix.path for matrix in matrices)
    return f"in the layers there are {', '.join(paths)}"
