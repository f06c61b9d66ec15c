"""The methods: a row for each preset, for each truncation and for each allocation."""

from typing import Literal, NamedTuple, TypedDict

from schemas.model.spec import Factors

Method = Literal["two-sided", "neurons", "width", "svd-llm-v2", "svd-llm", "asvd", "fwsvd", "svd"]
Truncation = Literal["fisher", "input-only", "svd-llm-v2", "svd-llm", "asvd", "fwsvd", "svd"]
Allocation = Literal[
    "loss-aware",
    "loss-aware-ranks",
    "loss-aware-neurons",
    "loss-aware-width",
    "svd-llm-v2",
    "uniform",
]


class Preset(TypedDict):
    """What a method is short for."""

    truncation: Truncation
    allocation: Allocation
    factors: Factors


METHODS: dict[Method, Preset] = {
    "two-sided": {"truncation": "fisher", "allocation": "loss-aware", "factors": "pivoted"},
    "neurons": {"truncation": "fisher", "allocation": "loss-aware-neurons", "factors": "pivoted"},
    "width": {"truncation": "fisher", "allocation": "loss-aware-width", "factors": "pivoted"},
    "svd-llm-v2": {"truncation": "svd-llm-v2", "allocation": "svd-llm-v2", "factors": "plain"},
    "svd-llm": {"truncation": "svd-llm", "allocation": "uniform", "factors": "plain"},
    "asvd": {"truncation": "asvd", "allocation": "uniform", "factors": "plain"},
    "fwsvd": {"truncation": "fwsvd", "allocation": "uniform", "factors": "plain"},
    "svd": {"truncation": "svd", "allocation": "uniform", "factors": "plain"},
}
# Names for tables. SVD-LLM is a truncation by whitening, "(W)" in its paper, and a later update of
# the factors, which is a method of recovery here.
TITLES: dict[Method, str] = {
    "two-sided": "two-sided",
    "neurons": "neurons alone",
    "width": "one width",
    "svd-llm-v2": "SVD-LLM V2",
    "svd-llm": "SVD-LLM (W)",
    "asvd": "ASVD",
    "fwsvd": "FWSVD",
    "svd": "SVD",
}


class TruncationRow(NamedTuple):
    """The properties of a truncation; its mathematics is a file of `workers/truncation`.

    `full_gram` tells whether it is defined on the full X^T X of its input. The others take the
    moment of W's smaller side only, and matrices that read the same input share its root.
    `weighed` tells whether gradients weigh the error, so that half the loss is in nats; other
    losses are in units of layer outputs. A `scaled` one is a plain SVD of W with scaled columns: it
    takes diagonals in place of moments, and its loss is in units of its own. `needs_gradients`
    tells whether it takes a backward pass, `cholesky` whether the root of a moment is Cholesky's
    and no eigendecomposition.
    """

    full_gram: bool
    weighed: bool
    scaled: bool = False
    needs_gradients: bool = False
    cholesky: bool = False


class AllocationRow(NamedTuple):
    """What an allocation compares; its mathematics is a file of `workers/allocation`.

    `nats` tells whether it needs the loss of every matrix in nats, which then share one budget,
    `bounded` whether in units of layer outputs, of which `allocation.max_ratio` bounds what goes of
    a matrix, `ranks` whether it lowers ranks, `neurons` whether it removes neurons of an MLP,
    `one_width` whether all MLPs of a size keep as many.
    """

    nats: bool = False
    ranks: bool = True
    neurons: bool = False
    one_width: bool = False
    bounded: bool = False


TRUNCATIONS: dict[Truncation, TruncationRow] = {
    "fisher": TruncationRow(full_gram=False, weighed=True, needs_gradients=True),
    "input-only": TruncationRow(full_gram=False, weighed=False),
    "svd-llm-v2": TruncationRow(full_gram=True, weighed=False),
    "svd-llm": TruncationRow(full_gram=True, weighed=False, cholesky=True),
    "asvd": TruncationRow(full_gram=False, weighed=False, scaled=True),
    "fwsvd": TruncationRow(full_gram=False, weighed=False, scaled=True, needs_gradients=True),
    "svd": TruncationRow(full_gram=False, weighed=False, scaled=True),
}
ALLOCATIONS: dict[Allocation, AllocationRow] = {
    "loss-aware": AllocationRow(nats=True, neurons=True),
    "loss-aware-ranks": AllocationRow(nats=True),
    "loss-aware-neurons": AllocationRow(nats=True, neurons=True, ranks=False),
    "loss-aware-width": AllocationRow(nats=True, neurons=True, ranks=False, one_width=True),
    "svd-llm-v2": AllocationRow(bounded=True),
    "uniform": AllocationRow(),
}
