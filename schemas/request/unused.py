"""Settings that a truncation and an allocation do not use."""

from typing import Any

from pydantic import BaseModel

from schemas.request.methods import ALLOCATIONS, TRUNCATIONS, Allocation, Truncation


def unused_settings(truncation: Truncation, allocation: Allocation) -> tuple[str, ...]:
    """Return the settings that nothing reads, by their names.

    The bound of pivots is read wherever ranks are lowered: `svdllm export` pivots plain factors.
    """
    row, rule = TRUNCATIONS[truncation], ALLOCATIONS[allocation]
    used = {
        "allocation.min_ratio": rule.nats and rule.ranks,
        "allocation.max_ratio": rule.bounded,
        "calibration.gradient_samples": row.needs_gradients or rule.nats,
        "numerics.shrinkage": row.weighed,
        "numerics.input_shrinkage": row.weighed,
        "numerics.neuron_floor": row.weighed and rule.neurons,
        "numerics.pivot_bound": rule.ranks,
    }
    return tuple(name for name, reads in used.items() if not reads)


def as_used(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run, among them its truncation and its allocation, with the defaults
    of those settings in its groups that it does not use.
    """
    truncation, allocation = given["truncation"], given["allocation"]["method"]
    if truncation not in TRUNCATIONS or allocation not in ALLOCATIONS:
        return given  # which is refused as a configuration
    found = dict(given)
    for name in unused_settings(truncation, allocation):
        group, _, field = name.partition(".")
        if isinstance(there := found.get(group), BaseModel):
            default = type(there).model_fields[field].default
            found[group] = there.model_copy(update={field: default})
    return found
