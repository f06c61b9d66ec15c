"""What shapes alone say of a budget: whether a size can be kept, and what a plan supposes."""

import math

from schemas.errors import BudgetError, ConfigError
from schemas.model.dtypes import ITEM_BYTES
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.run.ranks import least_parameters
from schemas.run.targets import budgets
from workers.quantisation.sizes import base_bytes

SUPPOSED = 0.2  # in a plan, of every trial of a loss that nobody has measured yet


def supposed(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """Return the request with ratios to plan with, if a budget is to find it.

    Raises ConfigError if no ratio is left to find, if no rank is low enough for a size, or if the
    base keeps it already.
    """
    budget = config.budget
    if not budget.asked:
        return config
    own = [(ratio, group) for ratio, group in budgets(config, spec.matrices, 0.0) if ratio]
    given = {matrix.name for _, group in own for matrix in group}
    free = [matrix for matrix in spec.matrices if matrix.name not in given]
    if not free:
        raise ConfigError(
            f"{budget.option}: --ratio-by gives every matrix a ratio, so none is left to find; "
            "leave out a pattern"
        )
    if budget.measured:
        return config.model_copy(update={"ratio": (SUPPOSED,) * budget.trials})
    removed = sum(ratio * matrix.size for ratio, group in own for matrix in group)
    size = sum(matrix.size for matrix in free)
    removable = removed + size - least_parameters(config, free)
    if budget.size is None:
        whole = spec.parameters
        limit, unit, each = budget.parameters or 0, "parameters", 1.0
    else:
        nbytes = sum(tensor.nbytes for tensor in spec.tensors)
        whole = base_bytes(spec, budget.scheme) if budget.scheme else nbytes
        limit, unit = budget.size, "bytes"
        each = (whole - nbytes + _targeted_bytes(spec)) / spec.targeted
    if limit >= whole:
        raise ConfigError(
            f"{budget.option}: the base has {whole:,} {unit}, and keeps it as it is; ask for less"
        )
    if whole - limit > removable * each:
        raise BudgetError(
            f"{budget.option}: the base has {whole:,} {unit}, and the most that can go leaves "
            f"{whole - math.floor(removable * each):,}; ask for more"
        )
    ratio = max(0.0, ((whole - limit) / each - removed) / size)
    return config.model_copy(update={"ratio": (ratio,)})


def _targeted_bytes(spec: ModelSpec) -> int:
    """Bytes of the targeted matrices, as they are."""
    stored = {tensor.name: tensor.dtype for tensor in spec.tensors}
    return sum(m.size * ITEM_BYTES[stored[f"{m.stored}.weight"]] for m in spec.matrices)
