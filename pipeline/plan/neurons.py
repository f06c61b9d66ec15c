"""Which neurons can be removed on given machines."""

from pipeline.plan.flops import order_bytes
from pipeline.plan.layouts import usable
from schemas.model.spec import ModelSpec
from schemas.run.plan import ClusterSpec

_SHARE = 0.5  # of the memory of a device, which holds layers and moments, too


def without_wide(spec: ModelSpec, cluster: ClusterSpec) -> ModelSpec:
    """Return a model of which only those neurons may be removed that a device can order.

    A host would take hours for more of them, so they stay.
    """
    room = _SHARE * usable(cluster)
    wide = [neurons for neurons in spec.neurons if order_bytes(neurons) > room]
    names = {matrix.name for neurons in wide for matrix in neurons.matrices}
    matrices = tuple(
        matrix.model_copy(update={"neurons": ""}) if matrix.name in names else matrix
        for matrix in spec.matrices
    )
    stay = tuple(neurons.name for neurons in wide)
    return spec.model_copy(update={"matrices": matrices, "wide": stay})
