"""What shapes alone say of a budget: whether a size can be kept, and what a plan supposes."""

import math

from schemas.errors import BudgetError, ConfigError
from schemas.model.dtypes import ITEM_BYTES
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.run.ranks import least_parameters
from workers.quantisation.sizes import base_bytes

SUPPOSED = 0.2  # in a plan, of every trial of a loss that nobody has measured yet


def supposed(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """Return the request with ratios to plan with, if a budget is to find it.

    Raises ConfigError if no rank is low enough for a size, or if the base keeps it already.
    """
    budget = config.budget
    if not budget.asked:
        return config
    if budget.measured:
        return config.model_copy(update={"ratio": (SUPPOSED,) * budget.trials})
    least = least_parameters(config, spec.matrices)
    removable = spec.targeted - least
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
            f"{budget.option}: the base has {whole:,} {unit}, and the lowest ranks leave "
            f"{whole - math.floor(removable * each):,}; ask for more"
        )
    return config.model_copy(update={"ratio": ((whole - limit) / (spec.targeted * each),)})


def _targeted_bytes(spec: ModelSpec) -> int:
    """Bytes of the targeted matrices, as they are."""
    stored = {tensor.name: tensor.dtype for tensor in spec.tensors}
    return sum(m.size * ITEM_BYTES[stored[f"{m.stored}.weight"]] for m in spec.matrices)
