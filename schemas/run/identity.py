"""Names that say what an artefact depends on.

A calibration depends on (base files, tokens, numeric settings); bases on a calibration and a
truncation, and what is left of neurons on their floor besides; factors on bases and an encoding,
and on what ranks are multiples of if they can fall back to a lower one; an output on all of it, the
ratio and the allocation.
Adopted factors depend on the checkpoint that they are from; so does all of a run that cuts it
further.
Settings that do not change numbers (workers, addresses, folders) are in none of them.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Self

from pydantic import Field, JsonValue

from schemas.base import Schema
from schemas.request.config import RunConfig
from schemas.request.methods import ALLOCATIONS, TRUNCATIONS
from schemas.run.moments import Pass

_ARTEFACTS = 5  # raised whenever an item of the run directory changes its content or its meaning
_TRAINING = 2  # raised whenever a training computes other numbers, or keeps another state

_TRAINED_ALIKE = {"enabled", "text", "micro_batch", "checkpointing", "offload"}  # of recovery


class Record(Schema):
    """The commit record of one finished item: it exists only if the item is complete.

    `attempt` sets its file apart from other attempts at the same item. `sha256` is the file's;
    `seal` is the SHA-256 of this record, which reveals damage.
    """

    key: str
    attempt: str
    sha256: str
    bytes: int
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    seal: str = ""

    @staticmethod
    def file_of(key: str, attempt: str) -> str:
        """Return the file of one attempt at an item, relative to the run directory."""
        stem, _, suffix = key.rpartition(".")
        return f"{stem}.{attempt}.{suffix}"

    @property
    def file(self) -> str:
        """The item's file, relative to the run directory."""
        return self.file_of(self.key, self.attempt)

    def sealed(self) -> Self:
        text = self.model_dump_json(exclude={"seal"})
        return self.model_copy(update={"seal": hashlib.sha256(text.encode()).hexdigest()})


class Identities(Schema):
    """The identities of one run, each a SHA-256 prefix; `backward` is None without gradients,
    `neurons` if none may go, `taught` (the base's last hidden states on the text of a recovery) and
    `recovery` if the factors are not trained.
    """

    forward: str
    backward: str | None
    bases: str
    factors: str
    neurons: str | None = None
    taught: str | None = None
    recovery: str | None = None

    def moments(self, direction: Pass) -> str:
        """Return the identity of one stream's moments. Raises ValueError if there is none."""
        found = self.forward if direction == "forward" else self.backward
        if found is None:
            raise ValueError("this run takes no gradients")
        return found

    def output(
        self,
        config: RunConfig,
        ratio: float,
        given_up: Collection[str] = (),
        split: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
        wide: Collection[str] = (),
    ) -> str:
        """Identify the checkpoint at one ratio; `given_up` matrices had to stay dense in it, those
        of `split` are cut in parts, and `wide` neurons had to stay.
        """
        asked = config.allocation
        bound = [asked.max_ratio] if ALLOCATIONS[asked.method].bounded else []
        bound += [asked.min_ratio] if asked.min_ratio else []
        kept = [sorted(given_up)] if given_up else []
        chosen = [config.targets.model_dump(mode="json"), list(config.ratio_by.items())]
        trained = [self.recovery] if self.recovery else []
        pruned = [{"neurons": self.neurons}] if self.neurons else []
        apart = [dict(split)] if split else []
        stay = [{"wide": sorted(wide)}] if wide else []
        rest = [*bound, *kept, *chosen, *trained, *pruned, *apart, *stay, *_grid(config)]
        return fingerprint([self.factors, asked.method, ratio, *rest])


class Ground(Schema):
    """What all numbers of a run depend on, besides its configuration.

    Identity of every base file (as in `Manifest`), SHA-256 of the tokens of each stream; compute
    dtype and device as the workers found them; versions of the libraries that compute. `adopted`
    identifies the checkpoint whose factors are trained, or that is cut further.
    """

    base_files: dict[str, str]
    forward_tokens: str
    backward_tokens: str | None
    recovery_tokens: str | None = None
    training_dtype: str | None = None
    adopted: str | None = None
    dtype: str
    device: str
    versions: dict[str, str]


def identities(config: RunConfig, ground: Ground) -> Identities:
    """Return a run's identities: each covers all that its numbers depend on, and nothing else."""
    common = {
        "artefacts": _ARTEFACTS,
        "base": ground.base_files,
        "dtype": ground.dtype,
        "device": ground.device,
        "versions": ground.versions,
        "threads": config.numerics.threads,
        "micro_batch": config.calibration.micro_batch,
        "segments": config.calibration.segments,
    }
    cut = common  # what is cut: the base, or what is adopted and cut further
    if ground.adopted is not None and config.calibrates:
        cut = common | {"adopted": ground.adopted}
    forward = fingerprint([cut, ground.forward_tokens])
    backward = None
    if ground.backward_tokens is not None:
        backward = fingerprint([cut, ground.backward_tokens, config.seed])
    weighed = TRUNCATIONS[config.truncation].weighed
    numerics = config.numerics
    shrinkage = [numerics.shrinkage, numerics.input_shrinkage] if weighed else [None]
    bases = fingerprint([forward, backward, config.truncation, *shrinkage])
    neurons = fingerprint([bases, numerics.neuron_floor]) if config.prunes else None
    pivot_bound = numerics.pivot_bound if config.factors == "pivoted" else None
    fallback = _grid(config) if config.factors == "pivoted" else []  # to plain ones, on the grid
    sides = ["pivots by sharding"] if config.factors == "pivoted" else []  # once all were rows
    factors = fingerprint([bases, config.factors, pivot_bound, *sides, *fallback])
    if ground.adopted is not None and not config.calibrates:
        bases = factors = neurons = fingerprint([common, "adopted", ground.adopted])
    taught = recovery = None
    if ground.recovery_tokens is not None:
        taught = fingerprint([common, ground.recovery_tokens, ground.training_dtype])
        settings = [
            group.model_dump(mode="json", exclude=_TRAINED_ALIKE) if group.enabled else None
            for group in (config.refinement, config.recovery)
        ]
        if not config.recovery.enabled:  # it still says which state is best
            asked = config.recovery
            settings.append({"objective": asked.objective, "norms": asked.norms})
        ground_of = [factors, neurons, ground.recovery_tokens, ground.training_dtype]
        recovery = fingerprint([_TRAINING, *ground_of, settings])
    return Identities(
        forward=forward,
        backward=backward,
        bases=bases,
        factors=factors,
        neurons=neurons,
        taught=taught,
        recovery=recovery,
    )


def _grid(config: RunConfig) -> list[dict[str, int]]:
    multiple = config.allocation.multiple
    return [{"rank_multiple": multiple}] if multiple > 1 else []


def fingerprint(value: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
