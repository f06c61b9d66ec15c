"""Reading committed spectra."""

from schemas.model.spec import MatrixSpec
from schemas.result.output import SpectrumFacts
from workers.allocation.budget import MatrixLoss
from workers.storage.keys import spectrum_key
from workers.storage.store import Store


def read_spectrum(
    store: Store, identity: str, matrix: MatrixSpec
) -> tuple[MatrixLoss, SpectrumFacts]:
    """Read the committed spectrum of a matrix, as an allocation sees it, and its facts."""
    item = store.load(spectrum_key(identity, matrix.name))
    facts = SpectrumFacts.model_validate(item.facts)
    return MatrixLoss(matrix, item.tensors["eigenvalues"], facts.nats, facts.tokens), facts
