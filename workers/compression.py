"""From the moments of a matrix to its basis, and from its basis to stored factors.

Every step reads committed items and commits one, so it can run anywhere, in any order, once.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.config import RunConfig
from schemas.errors import NumericsError
from schemas.identity import Identities, Record
from schemas.model import Encoding, MatrixSpec, ModelSpec
from schemas.moments import Tap, backward_tap, forward_tap
from schemas.output import MatrixResult, SpectrumFacts, stored_parameters
from workers.allocation.budget import MatrixLoss, cost, rank_within
from workers.checkpoint import TensorReader, torch_dtype
from workers.moments import Moment
from workers.pivoting import pivot
from workers.store import Store
from workers.tensorfile import entries
from workers.truncation import Basis, Problem


def moment_key(ids: Identities, tap: Tap) -> str:
    return f"moments/{ids.moments(tap.direction)}/{tap.name}.safetensors"


def basis_key(identity: str, matrix: str) -> str:
    return f"bases/{identity}/{matrix}.safetensors"


def spectrum_key(identity: str, matrix: str) -> str:
    return f"spectra/{identity}/{matrix}.safetensors"


def factors_key(identity: str, matrix: str, rank: int) -> str:
    return f"factors/{identity}/{matrix}.rank-{rank}.safetensors"


class Stored(NamedTuple):
    """A' B' as they go to disk: tensors by the names of runtime/, and what storing them cost."""

    encoding: Encoding
    rank: int
    tensors: dict[str, Tensor]
    rounding: float
    interpolation_max: float | None
    fallbacks: tuple[str, ...]


class Compressor:
    """The per-matrix work of one run, on one device."""

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        folder: Path,
        ids: Identities,
        device: torch.device,
    ) -> None:
        self._config = config
        self._ids = ids
        self._device = device
        self._store = Store(config.run_folder)
        self._reader = TensorReader(folder, spec)
        self._base = spec.architecture.base
        self._dtype = torch_dtype(spec)

    def factorise(self, matrix: MatrixSpec) -> Record:
        """Commit the basis and the spectrum of a matrix. Raises NumericsError."""
        problem = self._problem(matrix)
        try:
            basis = problem.basis()
        except (NumericsError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise NumericsError(f"{matrix.name}: {error}") from error
        self._store.commit(
            basis_key(self._ids.bases, matrix.name),
            entries({"left": basis.left.float(), "right": basis.right.float()}),
        )
        facts = SpectrumFacts(
            through=basis.through,
            nats=problem.nats,
            tokens=problem.forward.tokens,
            fallbacks=basis.fallbacks,
            remarks=problem.remarks(),
        )
        key = spectrum_key(self._ids.bases, matrix.name)
        eigenvalues = entries({"eigenvalues": basis.eigenvalues})
        return self._store.commit(key, eigenvalues, facts.model_dump(mode="json"))

    def truncate(self, matrix: MatrixSpec, rank: int) -> Record:
        """Commit the factors of a matrix at a rank; the record's facts are a `MatrixResult`."""
        loss, facts = read_spectrum(self._store, self._ids.bases, matrix)
        tensors = self._store.load(basis_key(self._ids.bases, matrix.name)).tensors
        basis = Basis(
            eigenvalues=loss.eigenvalues.to(self._device),
            left=tensors["left"].to(self._device).double(),
            right=tensors["right"].to(self._device).double(),
            through=facts.through,
        )
        problem = self._problem(matrix)
        stored = self._encode(basis, problem.weight, loss, rank)
        predicted = float(loss.tail()[stored.rank])
        result = MatrixResult(
            name=matrix.name,
            shape=(matrix.out_features, matrix.in_features),
            encoding=stored.encoding,
            rank=stored.rank,
            parameters=stored_parameters(matrix, stored.encoding, stored.rank),
            predicted_loss=predicted,
            achieved_loss=problem.loss(basis, stored.rank),
            energy=float(loss.tail()[0]),
            nats=None if loss.nats is None else loss.nats * predicted,
            rounding=stored.rounding,
            interpolation_max=stored.interpolation_max,
            fallbacks=(*facts.fallbacks, *stored.fallbacks),
            remarks=facts.remarks,
        )
        key = factors_key(self._ids.factors, matrix.name, rank)
        return self._store.commit(key, entries(stored.tensors), result.model_dump(mode="json"))

    def _problem(self, matrix: MatrixSpec) -> Problem:
        truncation = self._config.truncation
        weight = self._reader.read(f"{self._base}{matrix.name}.weight").to(self._device)
        return Problem(
            truncation=truncation,
            weight=weight.double(),
            forward=self._read_moment(forward_tap(matrix, truncation)),
            backward=self._read_moment(backward_tap(matrix, truncation))
            if self._config.needs_gradients
            else None,
            shrinkage=self._config.numerics.shrinkage,
        )

    def _read_moment(self, tap: Tap) -> Moment:
        key = moment_key(self._ids, tap)
        tensors = self._store.load(key).tensors
        matrix = tensors.get("moment")
        return Moment(
            matrix=None if matrix is None else matrix.to(self._device),
            trace=float(tensors["trace"]),
            tokens=int(tensors["tokens"]),
        )

    def _encode(self, basis: Basis, weight: Tensor, loss: MatrixLoss, rank: int) -> Stored:
        """The factors in the checkpoint's dtype, pivoted if asked for and well-conditioned."""
        a, b = basis.factors(weight, rank)
        if self._config.factors == "plain":
            return self._plain(a, b, ())
        pivoted = pivot(a, b)
        bound = self._config.numerics.pivot_bound
        if pivoted.magnitude > bound:
            budget = cost(loss.matrix, "pivoted", rank)
            lower = rank_within(loss, "plain", budget) or rank
            note = (
                f"pivoted at rank {rank} has max|T| = {pivoted.magnitude:.3g} > {bound:g}: "
                f"plain factors at rank {lower} used, within the same parameters"
            )
            return self._plain(*basis.factors(weight, lower), (note,))
        tensors = {
            "down.weight": pivoted.rows.to(self._dtype),
            "up.weight": pivoted.interpolation.to(self._dtype),
        }
        down, up = (tensor.double() for tensor in tensors.values())
        written = torch.cat([down, up @ down])[pivoted.order]
        tensors["order"] = pivoted.order
        return Stored(
            "pivoted", rank, tensors, _relative_error(written, a @ b), pivoted.magnitude, ()
        )

    def _plain(self, a: Tensor, b: Tensor, fallbacks: tuple[str, ...]) -> Stored:
        tensors = {"down.weight": b.to(self._dtype), "up.weight": a.to(self._dtype)}
        written = tensors["up.weight"].double() @ tensors["down.weight"].double()
        return Stored(
            "plain", a.shape[1], tensors, _relative_error(written, a @ b), None, fallbacks
        )


def read_spectrum(
    store: Store, identity: str, matrix: MatrixSpec
) -> tuple[MatrixLoss, SpectrumFacts]:
    """The committed spectrum of a matrix, as an allocation sees it, and how it came about."""
    item = store.load(spectrum_key(identity, matrix.name))
    facts = SpectrumFacts.model_validate(item.facts)
    return MatrixLoss(matrix, item.tensors["eigenvalues"], facts.nats, facts.tokens), facts


def kept_dense(store: Store, identity: str, matrix: MatrixSpec) -> MatrixResult:
    """The row of a matrix that stays as it is, whatever its spectrum rests on."""
    loss, _ = read_spectrum(store, identity, matrix)
    return MatrixResult(
        name=matrix.name,
        shape=(matrix.out_features, matrix.in_features),
        encoding="dense",
        rank=None,
        parameters=matrix.size,
        predicted_loss=0.0,
        achieved_loss=0.0,
        energy=float(loss.tail()[0]),
        nats=None if loss.nats is None else 0.0,
    )


def _relative_error(written: Tensor, exact: Tensor) -> float:
    return float((written - exact).norm() / exact.norm().clamp(min=1e-300))
