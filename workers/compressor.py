"""From the moments of a matrix to its basis, and from its basis to stored factors.

Every step reads committed items and commits one, so it can run anywhere, in any order, once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from schemas.errors import NumericsError
from schemas.model.spec import MatrixSpec, ModelSpec
from schemas.request.config import RunConfig
from schemas.result.output import MatrixResult, SpectrumFacts
from schemas.run.identity import Identities, Record
from schemas.run.moments import Tap, backward_tap, features_tap, forward_tap
from workers.allocation.budget import MatrixLoss
from workers.calibration.moments import Moment
from workers.checkpoint.tensors import TensorReader
from workers.process.devices import free_cached
from workers.process.failures import failure
from workers.process.logs import about_matrices, log
from workers.storage.keys import basis_key, factors_key, spectrum_key
from workers.storage.moments import read_moment
from workers.storage.spectra import read_spectrum
from workers.storage.store import Store
from workers.storage.tensorfile import DTYPES, entries
from workers.truncation.basis import Basis
from workers.truncation.encoding import encode
from workers.truncation.problem import Problem
from workers.truncation.two_sided import Root

Notes = tuple[str, ...]
R = TypeVar("R")

_HOST = torch.device("cpu")
# A basis is stored in float32: for each of its directions, rounding adds at most this share of the
# whole energy to a loss.
_BASIS_EPS = torch.finfo(torch.float32).eps


class Compressor:
    """The per-matrix work of one run, on one device.

    `loaded` returns a weight that is already on the device, with its exact values, or None.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        reader: TensorReader,
        ids: Identities,
        device: torch.device,
        loaded: Callable[[MatrixSpec], Tensor | None] = lambda _: None,
    ) -> None:
        self.config = config
        self.ids = ids
        self._device = device
        self.store = Store(config.run_folder)
        self._reader = reader
        self._loaded = loaded
        self.dtype = DTYPES[spec.dtype]

    def factorise(self, group: Sequence[MatrixSpec]) -> list[Record]:
        """Commit basis and spectrum of matrices that share a root, if any. Raises NumericsError."""
        records, root = [], None
        for matrix in group:
            record, root = self.fitting(partial(self._factorise, matrix, root), matrix)
            records.append(record)
        return records

    def _factorise(
        self, matrix: MatrixSpec, root: Root | None, device: torch.device, notes: Notes
    ) -> tuple[Record, Root | None]:
        problem = self.problem(matrix, device)
        if root is None or root.factor.device.type != device.type:
            root = problem.root()
        basis = problem.basis(root)
        basis = basis._replace(fallbacks=(*notes, *basis.fallbacks))
        return self._commit_basis(matrix, problem, basis), root

    def fitting(self, compute: Callable[[torch.device, Notes], R], matrix: MatrixSpec) -> R:
        """Run `compute` on this device; on the host, recorded, if the device lacks memory, or a
        solver fails there or returns a wrong result. Raises NumericsError if the host fails too.
        """
        notes: Notes = ()
        try:
            if self._device != _HOST:
                try:
                    return compute(self._device, notes)
                except RuntimeError as error:
                    notes = (_why_not(self._device, error),)
                free_cached()  # here, where the traceback holds no tensor of the attempt
                with about_matrices([matrix.name]):
                    log.warning("%s: %s", matrix.name, *notes)
            return compute(_HOST, notes)
        except (NumericsError, LinAlgError) as error:
            raise NumericsError(f"{matrix.name}: {error}") from error

    def _commit_basis(self, matrix: MatrixSpec, problem: Problem, basis: Basis) -> Record:
        if self.config.cluster.keep_bases:
            self.store.commit(
                basis_key(self.ids, matrix.name),
                entries({"left": basis.left.float(), "right": basis.right.float()}),
            )
        facts = SpectrumFacts(
            through=basis.through,
            nats=problem.nats,
            tokens=problem.forward.tokens,
            shrinkage=basis.shrinkage,
            fallbacks=basis.fallbacks,
            remarks=problem.remarks(),
        )
        key = spectrum_key(self.ids, matrix.name)
        eigenvalues = entries({"eigenvalues": basis.eigenvalues})
        return self.store.commit(key, eigenvalues, facts.model_dump(mode="json"))

    def truncate(self, matrix: MatrixSpec, rank: int) -> Record:
        """Commit the factors of a matrix at a rank; the record's facts are a `MatrixResult`."""
        return self.fitting(partial(self._truncate, matrix, rank), matrix)

    def _truncate(
        self, matrix: MatrixSpec, rank: int, device: torch.device, notes: Notes
    ) -> Record:
        multiple = self.config.allocation.multiple
        loss, facts = read_spectrum(self.store, self.ids, matrix, multiple)
        problem = self.problem(matrix, device)
        basis = self._basis(matrix, problem, loss, facts)
        stored = encode(self.config, basis, problem.weight, loss, rank, self.dtype)
        predicted, energy = float(loss.tail()[stored.rank]), float(loss.tail()[0])
        achieved = problem.loss(basis, stored.rank)
        if not abs(achieved - predicted) <= matrix.small * _BASIS_EPS * energy:
            wrong = f"the loss is {achieved:.3g}, where the spectrum says {predicted:.3g}"
            if device != _HOST:
                raise LinAlgError(wrong)
            notes = (*notes, wrong)
        result = MatrixResult(
            name=matrix.name,
            shape=(matrix.out_features, matrix.in_features),
            encoding=stored.encoding,
            rank=stored.rank,
            parameters=matrix.stored_parameters(stored.encoding, stored.rank),
            predicted_loss=predicted,
            achieved_loss=achieved,
            energy=energy,
            nats=None if loss.nats is None else loss.nats * predicted,
            rounding=stored.rounding,
            interpolation_max=stored.interpolation_max,
            shrinkage=facts.shrinkage,
            fallbacks=tuple(dict.fromkeys((*notes, *facts.fallbacks, *stored.fallbacks))),
            remarks=facts.remarks,
        )
        key = factors_key(self.ids, matrix.name, rank)
        return self.store.commit(key, entries(stored.tensors), result.model_dump(mode="json"))

    def _basis(
        self, matrix: MatrixSpec, problem: Problem, loss: MatrixLoss, facts: SpectrumFacts
    ) -> Basis:
        """Return the committed basis; if none is kept, recompute it, rounded as if stored."""
        key = basis_key(self.ids, matrix.name)
        if self.config.cluster.keep_bases or self.store.record(key):
            tensors = self.store.load(key).tensors
            left, right = tensors.pop("left"), tensors.pop("right")
        else:
            again = problem.basis(problem.root())
            left, right = again.left.float().contiguous(), again.right.float().contiguous()
        device = problem.weight.device
        return Basis(
            eigenvalues=loss.eigenvalues.to(device),
            left=left.to(device).double(),
            right=right.to(device).double(),
            through=facts.through,
        )

    def problem(self, matrix: MatrixSpec, device: torch.device) -> Problem:
        """Return the problem of a matrix, on a device."""
        truncation = self.config.truncation
        features = features_tap(matrix, truncation)
        return Problem(
            truncation=truncation,
            weight=self.weight(matrix, device),
            forward=self.moment(forward_tap(matrix, truncation), device),
            backward=self.moment(backward_tap(matrix, truncation), device)
            if self.config.needs_gradients
            else None,
            shrinkage=self.config.numerics.shrinkage,
            input_shrinkage=self.config.numerics.input_shrinkage,
            features=None if features is None else self.moment(features, device),
        )

    def weight(self, matrix: MatrixSpec, device: torch.device) -> Tensor:
        """Return W (m, n) of a matrix, as it is stored, on a device."""
        weight = self._loaded(matrix)
        if weight is None:
            weight = self._reader.read(f"{matrix.stored}.weight")
            weight = (weight.T if matrix.transposed else weight)[matrix.rows]
        return weight.to(device)

    def rows(self, matrix: MatrixSpec, chosen: Tensor) -> dict[str, Tensor]:
        """Return some rows of a matrix, and of its bias if it has one, as tensors that store it."""
        found = {"dense.weight": self.weight(matrix, chosen.device)[chosen].to(self.dtype)}
        if matrix.bias:
            bias = self._reader.read(f"{matrix.stored}.bias")[matrix.rows]
            found["dense.bias"] = bias.to(chosen.device)[chosen].to(self.dtype)
        return found

    def moment(self, tap: Tap, device: torch.device) -> Moment:
        """Return a committed moment, on a device."""
        return read_moment(self.store, self.ids, tap, device)


def _why_not(device: torch.device, error: RuntimeError) -> str:
    """Say why the host computes something instead. Raises `error` if that would not help."""
    if failure(error) == "device memory":
        return f"too large for the memory of the {device.type} device: computed on the host"
    if isinstance(error, LinAlgError):
        return f"failed on the {device.type} device ({error}): computed on the host"
    raise error


def kept_dense(store: Store, ids: Identities, matrix: MatrixSpec) -> MatrixResult:
    """Return the row of a matrix whose rank allocation keeps dense."""
    loss, facts = read_spectrum(store, ids, matrix)
    energy = float(loss.tail()[0])
    return left_dense(matrix, loss.nats is not None, facts.fallbacks, energy)


def left_dense(
    matrix: MatrixSpec, gradients: bool, fallbacks: Notes = (), energy: float | None = None
) -> MatrixResult:
    """Return the row of a matrix that stays dense. `energy` is that of its spectrum, and
    `fallbacks` are what made it; without a spectrum, none was asked for, or `fallbacks` say why the
    matrix could not be cut.

    `gradients` tells whether the run weighs losses by gradients.
    """
    return MatrixResult(
        name=matrix.name,
        shape=(matrix.out_features, matrix.in_features),
        encoding="dense",
        rank=None,
        parameters=matrix.size,
        predicted_loss=0.0,
        achieved_loss=0.0,
        energy=energy,
        nats=0.0 if gradients else None,
        fallbacks=fallbacks,
    )
