"""Reading committed spectra, and orders of neurons."""

from schemas.model.spec import MatrixSpec, Neurons
from schemas.result.output import NeuronsFacts, SpectrumFacts
from schemas.run.identity import Identities
from workers.allocation.budget import MatrixLoss, NeuronsLoss
from workers.storage.keys import neurons_key, spectrum_key
from workers.storage.store import Store


def read_spectrum(
    store: Store, ids: Identities, matrix: MatrixSpec, multiple: int = 1
) -> tuple[MatrixLoss, SpectrumFacts]:
    """Read the committed spectrum of a matrix, as an allocation sees it, and its facts.

    `multiple` is what ranks are to be multiples of.
    """
    item = store.load(spectrum_key(ids, matrix.name))
    facts = SpectrumFacts.model_validate(item.facts)
    spectrum = item.tensors["eigenvalues"]
    return MatrixLoss(matrix, spectrum, facts.nats, facts.tokens, multiple), facts


def read_neurons(store: Store, ids: Identities, neurons: Neurons, multiple: int = 1) -> NeuronsLoss:
    """Read the committed losses of neurons in the same way."""
    item = store.load(neurons_key(ids, neurons.name))
    nats = NeuronsFacts.model_validate(item.facts).nats
    return NeuronsLoss(neurons, item.tensors["losses"], nats, multiple)
