"""Which matrices of a model are cut, and which of them share a budget."""

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

from schemas.errors import ConfigError
from schemas.model.spec import MatrixSpec, ModelSpec, Neurons
from schemas.request.compression import CompressionConfig

ROUTERS = ("router", "gate")  # names by which families call what chooses experts


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a matrix: some consecutive parts of its dotted name, as mlp.down_proj
    or layers.0.*, where * stands for anything.
    """
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def select(config: CompressionConfig, spec: ModelSpec) -> ModelSpec:
    """Return the model with only those of its matrices that are to be cut.

    Routers are not among them, and the head only if a pattern other than * names it. Raises
    ConfigError if a pattern names no matrix, if none is left, if the head cannot be cut, or if MLPs
    that are to keep one width are parted.
    """
    asked = config.targets
    matrices = (*spec.matrices, *_head(config, spec))
    names = [matrix.name for matrix in matrices]
    for pattern in (*asked.only, *asked.ignore, *config.ratio_by):
        if not any(matches(name, pattern) for name in names):
            raise ConfigError(f"{pattern!r} names no matrix; {_there(spec)}")
    exempt = [*asked.ignore, *(p for p, ratio in config.ratio_by.items() if not ratio), *ROUTERS]
    layers = range(asked.skip_first, spec.layers - asked.skip_last)
    chosen = tuple(
        matrix
        for matrix in matrices
        if (matrix.layer in layers or matrix.is_head)
        and matrix.small >= asked.min_features
        and any(matches(matrix.name, pattern) for pattern in asked.only)
        and not any(matches(matrix.name, pattern) for pattern in exempt)
    )
    if not chosen:
        raise ConfigError(f"no matrix is left to be cut; {_there(spec)}")
    return spec.model_copy(update={"matrices": _with_neurons(config, spec, chosen)})


def _with_neurons(
    config: CompressionConfig, spec: ModelSpec, chosen: tuple[MatrixSpec, ...]
) -> tuple[MatrixSpec, ...]:
    """Return the chosen matrices; their neurons can be removed if that is asked for, and if all the
    matrices that have a part in them are chosen and share a budget.
    """
    shared: set[str] = set()
    if config.prunes:
        names = [{m.name for m in group} for _, group in budgets(config, chosen, 0.0)]
        together = [[n for n in spec.neurons if n.within(group)] for group in names]
        if config.one_width:
            _require_together(spec, together)
        shared = {m.name for group in together for neurons in group for m in neurons.matrices}
    return tuple(
        matrix if matrix.name in shared else matrix.model_copy(update={"neurons": ""})
        for matrix in chosen
    )


def _require_together(spec: ModelSpec, budgeted: list[list[Neurons]]) -> None:
    """Raises ConfigError if some MLPs of a size are not cut, or not all within one budget."""
    parts = [Counter(neurons.count for neurons in group) for group in budgeted]
    for count, number in Counter(neurons.count for neurons in spec.neurons).items():
        found = [part[count] for part in parts if part[count]]
        if found not in ([], [number]):
            raise ConfigError(
                f"the {number} MLPs of {count:,} neurons cannot keep one width: by --targets and "
                f"ratios of their own, {' and '.join(map(str, found))} of them are cut together; "
                "choose all of them at one ratio, or use --method neurons"
            )


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


def _head(config: CompressionConfig, spec: ModelSpec) -> list[MatrixSpec]:
    """Return the head if it is chosen. Raises ConfigError if it cannot be cut."""
    head, patterns = spec.head, [pattern for pattern in config.targets.only if pattern != "*"]
    if head is None or not any(matches(head.name, pattern) for pattern in patterns):
        return []
    stored = {tensor.name: tensor.dtype for tensor in spec.tensors}
    dtype = stored.get(f"{head.stored}.weight", spec.dtype)
    why = ""
    if spec.tied:
        why = "it is the embedding, too (tie_word_embeddings), which has to stay"
    elif dtype != spec.dtype:
        why = f"it is stored in {dtype}, and the matrices of the layers in {spec.dtype}"
    elif config.trains:
        why = "--refine and --recover train factors of layers, and keep what follows them"
    if why:
        raise ConfigError(f"{head.name} cannot be cut: {why}; leave it out of --targets")
    return [head]


def _there(spec: ModelSpec) -> str:
    paths = dict.fromkeys(matrix.path for matrix in spec.matrices)
    after = f", after them {spec.head.name}" if spec.head and not spec.tied else ""
    return f"in the layers there are {', '.join(paths)}{after}"
