"""From the moments of an MLP to the order in which its neurons are removed, and from the order to
what is left of its matrices.

As in `compressor`, every step reads committed items and commits others.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from schemas.model.spec import MatrixSpec, Neurons
from schemas.result.output import MatrixResult, NeuronsFacts
from schemas.run.identity import Record
from schemas.run.moments import backward_tap, neurons_tap
from workers.compressor import Compressor, Notes
from workers.storage.keys import factors_key, neurons_key
from workers.storage.tensorfile import entries
from workers.truncation.neurons import Firing, firing, others
from workers.truncation.problem import Problem
from workers.truncation.shrinkage import firing_more

# Of C and its inverse in float64, a moment whose condition is beyond 1e9 leaves fewer digits.
_EPS = torch.finfo(torch.float32).eps


class Pruner:
    """The work on the neurons of one run, with what its `compressor` reads, and where it works."""

    def __init__(self, compressor: Compressor) -> None:
        self._with = compressor
        self._store, self._ids = compressor.store, compressor.ids

    def order(self, neurons: Neurons) -> Record:
        """Commit the order in which neurons are best removed. Raises NumericsError."""
        return self._with.fitting(partial(self._order, neurons), neurons.reader)

    def _order(self, neurons: Neurons, device: torch.device, notes: Notes) -> Record:
        problem, facts = self._problem(neurons, device)
        found = problem.removal()
        fallbacks = (*notes, *found.fallbacks)
        return self._store.commit(
            neurons_key(self._ids, neurons.name),
            entries({"order": found.order, "losses": found.losses}),
            facts.model_copy(update={"fallbacks": fallbacks}).model_dump(mode="json"),
        )

    def prune(self, neurons: Neurons, kept: int) -> list[Record]:
        """Commit the matrices of neurons of which some are kept, as they are stored then; the facts
        of each record, in the order of `matrices`, are a `MatrixResult`. Raises NumericsError.
        """
        return self._with.fitting(partial(self._prune, neurons, kept), neurons.reader)

    def _prune(
        self, neurons: Neurons, kept: int, device: torch.device, notes: Notes
    ) -> list[Record]:
        item = self._store.load(neurons_key(self._ids, neurons.name))
        before = NeuronsFacts.model_validate(item.facts)
        gone = neurons.count - kept
        chosen = others(item.tensors["order"][:gone], neurons.count).to(device)
        problem, _ = self._problem(neurons, device)
        exact = problem.compensated(self._with.weight(neurons.reader, device), chosen)
        stored = exact.to(self._with.dtype)
        predicted, energy = float(item.tensors["losses"][gone - 1]), problem.energy()
        achieved = problem.loss(chosen)
        if not abs(achieved - predicted) <= neurons.count * _EPS * energy:
            notes = (*notes, f"the loss is {achieved:.3g}, where the order says {predicted:.3g}")
        result = _result(
            neurons.reader,
            kept,
            predicted_loss=predicted,
            achieved_loss=achieved,
            energy=energy,
            nats=before.nats * predicted,
            rounding=float((stored.double() - exact).norm() / exact.norm().clamp_min(1e-300)),
            shrinkage=before.shrinkage,
            remarks=before.remarks,
            fallbacks=tuple(dict.fromkeys((*notes, *before.fallbacks))),
        )
        none = {"predicted_loss": 0.0, "achieved_loss": 0.0, "energy": None, "nats": 0.0}
        writers = [
            self._commit(_result(m, kept, **none), self._with.rows(m, chosen))
            for m in neurons.writers
        ]
        return [*writers, self._commit(result, {"dense.weight": stored})]

    def _commit(self, row: MatrixResult, tensors: dict[str, Tensor]) -> Record:
        key = factors_key(self._ids, row.name, row.rank or 0, pruned=True)
        return self._store.commit(key, entries(tensors), row.model_dump(mode="json"))

    def _problem(self, neurons: Neurons, device: torch.device) -> tuple[Firing, NeuronsFacts]:
        reader, config = neurons.reader, self._with.config
        numerics = config.numerics
        own = Problem(
            truncation=config.truncation,
            weight=self._with.weight(reader, device),
            forward=self._with.moment(neurons_tap(reader), device),  # not that of its outputs
            backward=self._with.moment(backward_tap(reader, config.truncation), device),
            shrinkage=numerics.shrinkage,
        )
        own.require_finite()
        metric, moment = own.metric(), own.forward.matrix
        if moment is None or own.nats is None:
            raise ValueError(f"{neurons.name}: neurons take a whole moment, and gradients")
        shares = numerics.input_shrinkage, numerics.neuron_floor
        found = firing(own.weight, firing_more(moment.double(), *shares), metric)
        return found, NeuronsFacts(nats=own.nats, shrinkage=metric.shrinkage, remarks=own.remarks())


def _result(matrix: MatrixSpec, kept: int, **found: Any) -> MatrixResult:
    return MatrixResult(
        name=matrix.name,
        shape=(matrix.out_features, matrix.in_features),
        encoding=matrix.pruned,
        rank=kept,
        parameters=matrix.stored_parameters(matrix.pruned, kept),
        **found,
    )
