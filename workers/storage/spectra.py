"""Reading committed spectra."""

from schemas.model.spec import MatrixSpec
from schemas.result.output import SpectrumFacts
from workers.allocation.budget import MatrixLoss
from workers.storage.keys import spectrum_key
from workers.storage.store import Store


def read_spectrum(
    store: Store, identity: str, matrix: MatrixSpec, multiple: int | None = None
) -> tuple[MatrixLoss, SpectrumFacts]:
    """Read the committed spectrum of a matrix, as an allocation sees it, and its facts.

    `multiple` is what ranks are asked to be multiples of, if anything.
    """
    item = store.load(spectrum_key(identity, matrix.name))
    facts = SpectrumFacts.model_validate(item.facts)
    spectrum = item.tensors["eigenvalues"]
    return MatrixLoss(matrix, spectrum, facts.nats, facts.tokens, multiple or 1), facts
