"""A finished checkpoint whose factors are to be trained: what is asked for, and what is there."""

from typing import NamedTuple

from runtime.configuration_lowrank import tensor_shapes
from schemas.errors import CheckpointError, ConfigError
from schemas.location import Location
from schemas.model.spec import ModelSpec
from schemas.request.adoption import AdoptionConfig
from schemas.request.config import RunConfig
from schemas.request.unused import as_used
from schemas.result.manifest import Compression, Manifest
from schemas.run.identity import fingerprint
from workers.checkpoint.names import COMPRESSION, CONFIG, INDEX, SUCCESS
from workers.checkpoint.published import read_compression, read_manifest
from workers.checkpoint.stored import at_hand
from workers.checkpoint.verify import check_files
from workers.storage.places import exists


class Adopted(NamedTuple):
    """A finished checkpoint, as its own files describe it."""

    manifest: Manifest
    compression: Compression

    @property
    def identity(self) -> str:
        """Identify it by its weights, and by what they were to be."""
        files = self.manifest.files
        weights = {name: entry.sha256 for name, entry in files.items() if _is_weights(name)}
        return fingerprint([self.manifest.output, weights])


def adopting(request: AdoptionConfig) -> RunConfig:
    """Return the run that trains the factors of a checkpoint; it does not calibrate.

    Raises CheckpointError if it is not a finished checkpoint of this program, StorageError if its
    store does not answer, ConfigError if nothing is to be trained.
    """
    there = read_finished(request.checkpoint).compression
    cut = there.method.get
    recovery = request.recovery
    if not request.refinement.enabled:
        if "enabled" in recovery.model_fields_set and not recovery.enabled:
            raise ConfigError("without recovery there is nothing to do; add --refine")
        recovery = recovery.model_copy(update={"enabled": True})
    given = {
        "model": request.base,
        "output": request.output,
        "revision": request.revision,
        "run_dir": request.run_dir,
        "adopt": request.checkpoint,
        "ratio": there.ratio,
        "method": cut("preset"),
        "truncation": cut("truncation"),
        "allocation": {"method": cut("allocation"), "rank_multiple": there.rank_multiple},
        "factors": cut("factors"),
        "ratio_by": there.ratio_by,
        "targets": there.targets,
        "dequantize": there.dequantize,
        "any_architecture": True,  # that was decided when it was compressed
        "on_failure": "keep_dense" if there.given_up else "fail",
        "calibration": there.calibration,
        "numerics": there.numerics.model_copy(update={"dtype": request.dtype}),
        "seed": there.seed if request.seed is None else request.seed,
        "refinement": request.refinement,
        "recovery": recovery,
        "evaluation": request.evaluation,
        "cluster": request.cluster,
    }
    return RunConfig.model_validate(as_used(given))


def adopt(
    place: Location, config: RunConfig, spec: ModelSpec, base_files: dict[str, str]
) -> Adopted:
    """Return a checkpoint whose files are as they were written, and that was made from this base.

    A base in an object store has identities of its own: if the checkpoint was made from a copy in
    another place, config.json alone is compared. Raises CheckpointError or ConfigError.
    """
    found = read_finished(place)
    made_from = found.manifest.base_files
    wrong = [
        name
        for name in sorted(made_from.keys() | base_files.keys())
        if _differ(made_from.get(name), base_files.get(name))
    ]
    if wrong:
        raise ConfigError(
            f"base {config.model}: {place} was made from another one ({', '.join(wrong[:3])} "
            f"differs); name that one with --base, it was {found.compression.model}"
        )
    require_files(place, found.manifest)
    _require_matrices(place, config, spec, found.compression)
    return found


def read_finished(place: Location) -> Adopted:
    """Return the description of a finished checkpoint. Raises CheckpointError if it is none,
    StorageError if its store does not answer.
    """
    found = Adopted(read_manifest(place), read_compression(place))
    if not exists(place / SUCCESS):
        raise CheckpointError(f"{place}: no {SUCCESS}; name a checkpoint that is finished")
    if scheme := found.compression.scheme:
        raise CheckpointError(
            f"{place}: its factors are quantised ({scheme}); name the checkpoint that it was made "
            "from, and quantise the result"
        )
    return found


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _differ(one: str | None, other: str | None) -> bool:
    """Whether two files differ, by their identities: SHA-256, or a store's own, with a colon."""
    if one is not None and other is not None and (":" in one) != (":" in other):
        return False
    return one != other


def require_files(place: Location, manifest: Manifest) -> None:
    """Raises CheckpointError if a file that is read is not as its manifest says."""
    with at_hand(place) as (folder, stored):
        changed = check_files(folder, manifest, stored).files
    wrong = [n for n in changed if _is_weights(n) or n in (CONFIG, COMPRESSION, INDEX)]
    if wrong:
        raise CheckpointError(
            f"{place}: {', '.join(wrong)} not as the manifest says; fetch the checkpoint again "
            "(`svdllm verify` tells more)"
        )


def _require_matrices(
    place: Location, config: RunConfig, spec: ModelSpec, compression: Compression
) -> None:
    """Raises CheckpointError if the checkpoint has other matrices than this run would cut, or
    ConfigError if it would not train them as they are, nor cut them further.
    """
    rows = {row.name: row for row in compression.matrices}
    for matrix in spec.matrices:
        row, shape = rows.get(matrix.name), (matrix.out_features, matrix.in_features)
        if row is None or row.shape != shape:
            raise CheckpointError(
                f"{place / COMPRESSION}: no matrix {matrix.name} of shape {shape}, which the base "
                "has; it was written by another version of this program"
            )
        try:
            tensor_shapes(row.encoding, row.rank, *shape, bias=matrix.bias)
        except ValueError as error:
            raise CheckpointError(f"{place / COMPRESSION}: {matrix.name}: {error}") from None
    same = config.calibrates or config.ratio == (compression.ratio,)
    if len(rows) != len(spec.matrices) or not same:
        raise ConfigError(
            f"{place} has {len(rows)} matrices at ratio {compression.ratio:g}, and "
            f"{len(spec.matrices)} at {config.ratio[0]:g} are asked for; use `svdllm recover`"
        )
