"""Moments on disk: the sums of a replica, and the mean over all of them."""

from functools import reduce

import torch
from pydantic import TypeAdapter
from torch import Tensor

from schemas.run.identity import Identities, Record
from schemas.run.moments import Tap
from workers.calibration.moments import Moment, MomentSums, combine
from workers.storage.keys import moment_key, part_key
from workers.storage.store import Facts, Store
from workers.storage.tensorfile import entries

_NOTES = TypeAdapter(tuple[str, ...])


def commit_moment(
    store: Store, ids: Identities, tap: Tap, sums: MomentSums, fallbacks: tuple[str, ...] = ()
) -> Record:
    """Commit the mean over all rows. Raises NumericsError if a row was not finite.

    `fallbacks` are deviations from the plan while the rows were computed.
    """
    moment = sums.mean(tap.name)
    tensors = {
        "trace": torch.tensor(moment.trace, dtype=torch.float64),
        "tokens": torch.tensor(moment.tokens),
        "fourth": torch.tensor(moment.fourth, dtype=torch.float64),
    }
    if moment.matrix is not None:
        tensors["moment"] = moment.matrix
    return store.commit(moment_key(ids, tap), entries(tensors), _facts(fallbacks))


def read_moment(store: Store, ids: Identities, tap: Tap, device: torch.device) -> Moment:
    """Read a committed moment, with its matrix on `device`."""
    tensors = store.load(moment_key(ids, tap)).tensors
    matrix = tensors.get("moment")
    return Moment(
        matrix=None if matrix is None else matrix.to(device),
        trace=float(tensors["trace"]),
        tokens=int(tensors["tokens"]),
        fourth=float(tensors["fourth"]),
    )


def fallbacks_of(facts: Facts) -> tuple[str, ...]:
    """Return the deviations from the plan that a committed moment, or a part of one, records."""
    return _NOTES.validate_python(facts.get("fallbacks", ()))


def commit_part(
    store: Store,
    ids: Identities,
    tap: Tap,
    sums: MomentSums,
    replica: int,
    replicas: int,
    fallbacks: tuple[str, ...],
) -> Record:
    """Commit the sums over the segments of one replica."""
    tensors: dict[str, Tensor] = {
        "energies": torch.tensor(sums.energies, dtype=torch.float64),
        "tokens": torch.tensor(sums.tokens),
        "fourths": torch.tensor(sums.fourths, dtype=torch.float64),
    }
    if sums.high is not None and sums.low is not None:
        tensors |= {"high": sums.high, "low": sums.low}
    key = part_key(ids, tap, replica, replicas)
    return store.commit(key, entries(tensors), _facts(fallbacks))


def merge_parts(store: Store, ids: Identities, tap: Tap, replicas: int) -> Record:
    """Commit the mean over the rows of all replicas; their number does not change it."""
    fallbacks: dict[str, None] = {}

    def part(replica: int) -> MomentSums:
        tensors, facts = store.load(part_key(ids, tap, replica, replicas))
        fallbacks.update(dict.fromkeys(fallbacks_of(facts)))
        return MomentSums(
            tensors.get("high"),
            tensors.get("low"),
            energies=tuple(tensors["energies"].tolist()),
            tokens=int(tensors["tokens"]),
            fourths=tuple(tensors["fourths"].tolist()),
        )

    total = reduce(combine, map(part, range(replicas)))
    return commit_moment(store, ids, tap, total, tuple(fallbacks))


def _facts(fallbacks: tuple[str, ...]) -> Facts | None:
    return {"fallbacks": list(fallbacks)} if fallbacks else None
